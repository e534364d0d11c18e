"""Floor 1: the requests that users send, recorded or drawn from laws."""
