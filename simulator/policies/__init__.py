"""Pure decisions: where experts live, which one to evict, which to prefetch. A family is a dict."""
