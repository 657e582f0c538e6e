"""What kvspec reads off vLLM's model runners, on stand-ins with the same attributes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kvspec.engine.vllm.runner import DeviceRunnerV1, DeviceRunnerV2, RunnerV1, adapter
from kvspec.errors import EngineError


def scheduled(new=(), cached=(), resumed=(), finished=(), preempted=None, counts=None):
    return SimpleNamespace(
        scheduled_new_reqs=[SimpleNamespace(req_id=r) for r in new],
        scheduled_cached_reqs=SimpleNamespace(req_ids=list(cached), resumed_req_ids=set(resumed)),
        finished_req_ids=set(finished),
        preempted_req_ids=preempted,
        num_scheduled_tokens=counts or {},
    )


def v1(device="cpu", requests=2):
    runner = SimpleNamespace(
        device=torch.device(device),
        max_num_reqs=requests,
        model=SimpleNamespace(compute_logits=lambda hidden: hidden * 2),
        input_batch=SimpleNamespace(req_ids=["b", "a"], num_computed_tokens_cpu=np.array([7, 0, 9], np.int32)),
        query_start_loc=SimpleNamespace(gpu=torch.tensor([0, 1, 4, 4], dtype=torch.int32)),
        seq_lens=torch.tensor([8, 3, 0], dtype=torch.int32),
    )
    runner._update_states = lambda scheduled: "deferred"
    runner._prepare_inputs = lambda scheduled, counts: "inputs"
    runner._dummy_run = lambda tokens: tokens
    return runner


def test_v1_slots_follow_requests_through_preemption():
    runner = DeviceRunnerV1(v1())
    first = dict(runner.entering(scheduled(new=["a", "b"])))
    assert sorted(first.values()) == [0, 1]
    assert runner.entering(scheduled(cached=["a", "b"])) == []
    # b leaves the batch, c takes its slot, b comes back when a has ended
    taken = dict(runner.entering(scheduled(new=["c"], cached=["a"], preempted={"b"})))
    assert taken == {"c": first["b"]}
    back = dict(runner.entering(scheduled(cached=["b", "c"], resumed=["b"], finished=["a"])))
    assert back == {"b": first["a"]}
    # an id that ended may be used again
    assert dict(runner.entering(scheduled(new=["a"], finished=["b"]))) == {"a": first["a"]}


def test_v1_calls_the_hooks_and_gives_what_the_runner_gives():
    stand_in = v1()
    runner = DeviceRunnerV1(stand_in)
    seen = []
    runner.hook(
        lambda s: seen.append(("requests", runner.entering(s))),
        lambda s, batch: seen.append(("step", batch)),
        lambda: seen.append(("dummy",)),
        lambda hidden, logits: seen.append(("logits", float(logits.sum()))),
    )
    step = scheduled(new=["a", "b"], counts={"a": 3, "b": 1})
    assert stand_in._update_states(step) == "deferred"
    assert stand_in._prepare_inputs(step, None) == "inputs"
    assert stand_in._dummy_run(5) == 5
    stand_in.model.compute_logits(torch.ones(2))
    assert [what[0] for what in seen] == ["requests", "step", "dummy", "logits"]
    slots, batch = dict(seen[0][1]), seen[1][1]
    assert batch.slot.tolist() == batch.slots.tolist() == [slots["b"], slots["a"]]
    assert (batch.start.tolist(), batch.count.tolist()) == ([7, 0], [1, 3])
    assert (batch.query_start.tolist(), batch.seq_lens.tolist()) == ([0, 1, 4], [8, 3])


def test_runners_are_told_apart_and_others_refused_by_name():
    assert type(adapter(v1())) is RunnerV1
    assert type(adapter(v1("cuda"))) is DeviceRunnerV1
    names = ("update_requests", "prepare_attn", "prepare_dummy_attn", "req_states")
    assert type(adapter(SimpleNamespace(**dict.fromkeys(names)))) is DeviceRunnerV2
    with pytest.raises(EngineError, match=r"builtins\.dict.*not supported"):
        adapter({})


def test_v1_on_a_cpu_tells_the_row_order():
    stand_in = v1()
    seen = []
    RunnerV1(stand_in).hook(
        lambda s, order: seen.append(list(order)),
        lambda: seen.append("dummy"),
        lambda hidden, logits: seen.append("logits"),
    )
    assert stand_in._prepare_inputs(scheduled(), None) == "inputs"
    stand_in._dummy_run(1)
    stand_in.model.compute_logits(torch.ones(1))
    assert seen == [["b", "a"], "dummy", "logits"]


def test_counts_of_ranks_are_added_and_logits_are_those_of_the_first(monkeypatch):
    from kvspec.engine.session import Session

    ranks = [
        {
            **{name: [1, 2] for name in ("landed", "changed", "exposed", "restored")},
            "written": [5, 6],
            "nonfinite_at": [3, -1],
        },
        {
            **{name: [10, 0] for name in ("landed", "changed", "exposed", "restored")},
            "written": [5, 6],
            "nonfinite_at": [-1, -1],
        },
    ]
    canaries = [
        {"checked": 4, "checked_reads": 8, "mismatches": 0, "first_mismatch": None},
        {"checked": 4, "checked_reads": 8, "mismatches": 1, "first_mismatch": "layer 2"},
    ]
    session = object.__new__(Session)
    monkeypatch.setattr(Session, "rpc_all", lambda self, method, *_: canaries if method == "kvspec_canary" else ranks)
    assert session.tally([0, 1]) == {
        "landed": [11, 2], "changed": [11, 2], "exposed": [11, 2], "restored": [11, 2], "written": [5, 6],
        "nonfinite_at": [3, -1],
    }  # fmt: skip
    assert session.canary() == {"checked": 8, "checked_reads": 16, "mismatches": 1, "first_mismatch": "layer 2"}
