"""What GPUs will need: predictors of `simulator.policies.prefetch`, compiled."""

from __future__ import annotations

from simulator.compiled import inlined
from simulator.engine import memory_tables as t
from simulator.policies.cooccurrence import count_transitions, follow
from simulator.policies.prefetch import ASKED_ROWS


@inlined
def learn(m: t.Tables, microbatch: int, layer: int) -> None:
    """All gates of a layer have spoken: remember what they said, and start from its rows."""
    gpus = m.of[t.GPUS]
    m.expected[:] = 0.0
    for gpu in range(gpus):
        m.idle[gpu] = True
        for chunk in range(m.table_of.shape[1]):
            at = m.table_of[microbatch, chunk, layer] * gpus + gpu
            for i in range(m.ptr[at], m.ptr[at + 1]):
                m.idle[gpu] = False
                m.expected[m.group[gpu], m.order[i]] += m.rows[i]
    if m.of[t.PREDICTOR] == t.MARKOV and layer > 0:
        first = m.token_ptr[microbatch]
        last = m.token_ptr[microbatch + 1]
        count_transitions(
            m.tokens[first:last, m.recorded[layer - 1]],
            m.tokens[first:last, m.recorded[layer]],
            m.pairs[layer - 1],
            m.took[layer - 1],
        )
    elif m.of[t.PREDICTOR] == t.POPULARITY:
        for group in range(m.expected.shape[0]):
            for expert in range(m.of[t.EXPERTS]):
                m.taken[layer, group, expert] += int(m.expected[group, expert])


@inlined
def predict(m: t.Tables, microbatch: int, layer: int) -> None:
    """What is wanted in a layer, into `wanted`: called for one layer after the other, from the one
    after that of `learn` on.
    """
    predictor = m.of[t.PREDICTOR]
    if predictor == t.MARKOV:
        k = m.tokens.shape[2]
        follow(m.expected, m.took[layer - 1], m.pairs[layer - 1], k, m.after)
        for group in range(m.expected.shape[0]):
            for expert in range(m.of[t.EXPERTS]):
                m.expected[group, expert] = m.after[group, expert]
    for gpu in range(m.of[t.GPUS]):
        m.wanted_n[gpu] = 0
        if predictor == t.ORACLE:
            _tell(m, microbatch, layer, gpu)
            for expert in range(m.of[t.EXPERTS]):
                if m.after[0, expert] > 0.0:
                    _rank(m.wanted, m.wanted_n, m.rank, gpu, expert, m.after[0, expert])
            continue
        group = m.group[gpu]
        for expert in range(m.of[t.EXPERTS]):
            if not m.serves[layer, gpu, expert]:
                continue
            if predictor == t.MARKOV:
                rows = m.expected[group, expert]
                if rows > ASKED_ROWS:
                    _rank(m.wanted, m.wanted_n, m.rank, gpu, expert, rows)
            elif m.taken[layer, group, expert] > 0:
                _rank(
                    m.wanted, m.wanted_n, m.rank, gpu, expert, float(m.taken[layer, group, expert])
                )


@inlined
def _tell(m: t.Tables, microbatch: int, layer: int, gpu: int) -> None:
    """The rows that a GPU will have in a layer, into `after`."""
    m.after[0] = 0.0
    for chunk in range(m.table_of.shape[1]):
        at = m.table_of[microbatch, chunk, layer] * m.of[t.GPUS] + gpu
        for i in range(m.ptr[at], m.ptr[at + 1]):
            m.after[0, m.order[i]] += m.rows[i]


@inlined
def _rank(
    wanted: t.Shorts, wanted_n: t.Ints, rank: t.Floats, gpu: int, expert: int, rows: float
) -> None:
    """Put an expert among those wanted: by rows, then by number; as many as there are slots."""
    at = wanted_n[gpu]
    while at > 0 and (
        rank[at - 1] < rows or (rank[at - 1] == rows and wanted[gpu, at - 1] > expert)
    ):
        at -= 1
    if at == wanted.shape[1]:
        return
    last = min(wanted_n[gpu], wanted.shape[1] - 1)
    for i in range(last, at, -1):
        wanted[gpu, i] = wanted[gpu, i - 1]
        rank[i] = rank[i - 1]
    wanted[gpu, at] = expert
    rank[at] = rows
    wanted_n[gpu] = last + 1
