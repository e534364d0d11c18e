"""Laws that every schedule keeps, whatever the requests, limits and KV memory."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import toy

from simulator.engine.serving.scheduler import ENDED, NOWHERE, RUNNING, WAITING
from simulator.engine.serving.timing import DECODE

PREFIX, BLOCK = 8, 4


@st.composite
def cases(draw, prefixes=True):
    """Requests [prompt, output, blocks, priority, rank] and the limits of a group."""
    ranks = draw(st.integers(1, 2))
    requests = draw(
        st.lists(
            st.tuples(
                st.integers(1, 40), st.integers(1, 20), st.integers(0, 3), st.integers(0, 2),
                st.integers(0, ranks - 1),
            ),
            min_size=1, max_size=14,
        )
    )  # fmt: skip
    prompt, output, family, priority, rank = map(list, zip(*requests, strict=True))
    # Requests of a family share the text of their prompts as far as both go.
    blocks = [
        [4 * of + at for at in range(min(n // PREFIX, 4))]
        for n, of in zip(prompt, family, strict=True)
    ]
    limits = {
        "most": draw(st.integers(1, 5)),
        "tokens": draw(st.integers(40, 64))
        if (whole := draw(st.booleans()))
        else draw(st.integers(1, 64)),
        "blocks": draw(st.integers(15, 40)),
        "block_tokens": BLOCK,
        "prefix_tokens": PREFIX if prefixes and draw(st.booleans()) else 0,
        "chunked": not whole,
        "swap": draw(st.booleans()),
    }
    return prompt, output, blocks if prefixes else None, priority, rank, ranks, limits


def watched(case, withdrawn=()):
    """Run to the end, a law checked at every step; the group and the tokens computed of each.

    withdrawn: (step, request) to be taken away then.
    """
    prompt, output, blocks, priority, rank, ranks, limits = case
    ledger = toy.ledger(prompt, output, blocks, priority)
    group = toy.group(ledger, ranks=ranks, **limits)
    for request, mine in enumerate(rank):
        group.enqueue(request, mine)
    computed = np.zeros(len(prompt), dtype=int)
    admitted: list[int] = []
    taken: set[int] = set()
    now, step = 0.0, 0
    while True:
        for at, request in withdrawn:
            if at == step and request < len(prompt) and ledger.state[request] in (WAITING, RUNNING):
                assert group.withdraw(request, rank[request])
                assert ledger.state[request] == NOWHERE
                assert not group.withdraw(request, rank[request])
                taken.add(request)
        end = group.start(now)
        if end == float("inf"):
            break
        chunk, running = group.ranks.chunk, group.ranks.running
        for mine in range(ranks):
            busy = int(group.ranks.busy[mine])
            assert busy <= limits["most"]
            assert chunk[mine, :busy].sum() <= limits["tokens"]
            assert 0 <= group.ranks.free[mine] <= limits["blocks"]
            for request, tokens in zip(running[mine, :busy], chunk[mine, :busy], strict=True):
                computed[request] += tokens
                there = ledger.done[request] + tokens
                own = ledger.blocks[request] * BLOCK + ledger.shared[request]
                assert tokens == 0 or own >= there  # all KV has a place
                if request not in admitted:
                    admitted.append(int(request))
        held = [
            int(ledger.blocks[running[m, : group.ranks.busy[m]]].sum())
            + (int((group.ranks.holders[m] >= 0).sum()) * PREFIX // BLOCK)
            for m in range(ranks)
        ]
        np.testing.assert_array_equal(held, limits["blocks"] - group.ranks.free)
        rows = group.work.phase[..., 0].sum()
        assert rows == sum(chunk[m, : group.ranks.busy[m]].sum() for m in range(ranks))
        group.finish()
        now, step = end, step + 1
        assert step < 20_000
    return group, computed, admitted, taken


@settings(max_examples=150)
@given(cases())
def test_every_request_ends_and_nothing_is_computed_twice(case):
    prompt, output, *_ = case
    group, computed, _, _ = watched(case)
    of = group.ledger
    assert (of.state == ENDED).all()
    np.testing.assert_array_equal(of.made, output)
    # The last token is sampled and never computed on.
    once = np.array(prompt) + np.array(output) - 1 - of.reused
    never = of.preempted == 0
    np.testing.assert_array_equal(computed[never], once[never])
    assert group.ranks.totals[2] == sum(output)
    cached = (group.ranks.holders == 0).sum(axis=1) * PREFIX // BLOCK
    assert (group.ranks.holders <= 0).all()
    np.testing.assert_array_equal(group.ranks.free + cached, group.of.limits.blocks)


@settings(max_examples=100)
@given(cases(), st.lists(st.tuples(st.integers(0, 30), st.integers(0, 13)), max_size=8))
def test_what_is_withdrawn_leaves_nothing_behind(case, withdrawn):
    group, _, _, taken = watched(case, withdrawn)
    of = group.ledger
    for request in range(len(of.prompt)):
        assert of.state[request] == (NOWHERE if request in taken else ENDED)
    assert (of.blocks == 0).all()
    assert (of.shared == 0).all()
    cached = (group.ranks.holders == 0).sum(axis=1) * PREFIX // BLOCK
    np.testing.assert_array_equal(group.ranks.free + cached, group.of.limits.blocks)
    assert not group.ranks.busy.any()
    assert not group.ranks.waiting.any()


@settings(max_examples=100)
@given(cases())
def test_first_come_first_admitted_within_a_priority(case):
    *_, priority, rank, ranks, _ = case
    _, _, admitted, _ = watched(case)
    for mine in range(ranks):
        order = [r for r in admitted if rank[r] == mine]
        # All were there from the start: by priority, then in the order in which they came.
        assert order == sorted(order, key=lambda r: (-priority[r], r))


@settings(max_examples=60)
@given(cases(prefixes=False))
def test_preemption_changes_when_and_not_what(case):
    """Swapped or computed again, the output is the same; swapped KV is computed once."""
    *before, limits = case
    swapped, computed, _, _ = watched((*before, {**limits, "swap": True}))
    again, more, _, _ = watched((*before, {**limits, "swap": False}))
    np.testing.assert_array_equal(swapped.ledger.made, again.ledger.made)
    once = swapped.ledger.prompt + swapped.ledger.output - 1
    np.testing.assert_array_equal(computed, once)
    assert (more >= once).all()


def test_preemption_does_happen():
    case = ([20] * 6, [20] * 6, None, [0] * 6, [0] * 6, 1,
            {"most": 6, "tokens": 64, "blocks": 20, "block_tokens": BLOCK, "prefix_tokens": 0,
             "chunked": True, "swap": False})  # fmt: skip
    group, computed, _, _ = watched(case)
    assert group.ledger.preempted.sum() > 0
    assert computed.sum() > 6 * 39


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(1, 60), st.integers(0, 2)), min_size=1, max_size=20))
def test_reuse_is_that_of_a_set_of_known_blocks(asked):
    """One request at a time and room for all: known are the blocks of all before."""
    prompt = [n for n, _ in asked]
    blocks = [[8 * of + at for at in range(-(-n // PREFIX))] for n, of in asked]
    ledger = toy.ledger(prompt, [2] * len(prompt), blocks)
    group = toy.group(ledger, tokens=64, block_tokens=BLOCK, prefix_tokens=PREFIX)
    known: set[int] = set()
    for request, mine in enumerate(blocks):
        group.enqueue(request, 0)
        tokens = 0
        while group.start(0.0) < float("inf"):
            tokens += int(group.work.phase[0, 0, :, 0].sum())
            group.finish()
        found = 0
        for block in mine[: (prompt[request] - 1) // PREFIX]:
            if block not in known:
                break
            found += PREFIX
        assert ledger.reused[request] == found
        assert tokens == prompt[request] - found + 1
        assert ledger.made[request] == 2
        known |= set(mine[: prompt[request] // PREFIX])


def test_least_recently_used_prefixes_go_first():
    """Room for two prefixes of two blocks: of A, B, A, C the cache keeps A and C."""
    blocks = [[0], [1], [0], [2], [0], [1]]
    ledger = toy.ledger([PREFIX + 1] * 6, [1] * 6, blocks)
    group = toy.group(ledger, tokens=64, block_tokens=BLOCK, prefix_tokens=PREFIX, blocks=6)
    for request in range(6):
        group.enqueue(request, 0)
        while group.start(0.0) < float("inf"):
            group.finish()
    assert ledger.reused.tolist() == [0, 0, PREFIX, 0, PREFIX, 0]


def test_a_decode_counts_as_one():
    ledger = toy.ledger([5], [3])
    group = toy.group(ledger)
    group.enqueue(0, 0)
    seen = []
    while group.start(0.0) < float("inf"):
        seen.append(group.work.phase[0, 0, :, 0].tolist())
        group.finish()
    assert [of[DECODE] for of in seen] == [0.0, 1.0, 1.0]
    assert seen[0][1 - DECODE] == 5.0


def test_two_runs_are_the_same_bytes(tmp_path):
    """Whatever Python's hash seed."""
    given = [
        "requests.limit=60",
        "requests.prompt=lognormal:300:1",
        "requests.output=exponential:20",
        "network=coflow",
        "expert_slots=null",
        "prefetch=none",
        "parallel.ep=8",
        "serving.failure_probability=0.2",
        "serving.attempts=3",
        "serving.dispatch=performance-aware",
    ]
    system = ["--topology", "nvswitch16", "--workload", "moe128", "--requests", "poisson:40"]
    system += [word for one in given for word in ("--set", one)]
    files = []
    for seed in ("0", "1"):
        out = tmp_path / seed
        subprocess.run(
            [sys.executable, "-m", "simulator", "serve", *system, "--out", str(out)],
            check=True, capture_output=True, env={**os.environ, "PYTHONHASHSEED": seed},
        )  # fmt: skip
        files.append({path.name: path.read_bytes() for path in sorted(out.iterdir())})
    assert files[0].keys() == files[1].keys()
    assert {"requests.parquet", "steps.parquet"} <= files[0].keys()
    assert files[0] == files[1]
