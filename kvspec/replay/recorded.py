"""The answers of a run folder, to compare a replay with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from kvspec.maps.runs import Run
from kvspec.replay.case import Case, Recorded, refused


class RecordedRun:
    """A run as the other side of a comparison."""

    def __init__(self, path: Path) -> None:
        """Open it. Raises `RecordsError` (KVS502, KVS505)."""
        self.path = path
        self._run = Run(path)

    @property
    def texts(self) -> tuple[str, ...]:
        """The prompts of the run."""
        return self._run.plan.spec.prompts.texts

    def grader(self, case: Case) -> dict[str, Any] | None:
        """The grader of the prompt of a case, as plain data; `None` if the run has none for it."""
        prompts = self._run.plan.spec.prompts
        tasks = dict(zip(prompts.texts, prompts.tasks, strict=False))
        task = tasks.get(case.text)
        return None if task is None else asdict(task.grader)

    def answers(self, cases: Sequence[Case]) -> list[Case]:
        """The cases with what this run recorded of them. Raises KVS515 for a trial that it did not run."""
        wanted = {self._trial(case) for case in cases}
        answers: dict[str, Recorded] = {}
        golden: dict[int, list[int]] = {}
        requests: dict[str, int] = {}
        for batch in self._run.store.iter_batches(["trial_id", "kind", "request", "token_ids", "finish_reason"]):
            for row in batch.to_pylist():
                if row["kind"] == "golden":
                    golden[row["request"]] = row["token_ids"]
                if row["trial_id"] in wanted:
                    requests[row["trial_id"]] = row["request"]
                    answers[row["trial_id"]] = Recorded(
                        token_ids=row["token_ids"],
                        finish_reason=row["finish_reason"],
                        environment=self._run.environment,
                        where=str(self.path),
                    )
        found = []
        for case in cases:
            name = self._trial(case)
            if name not in answers:
                raise refused(f"`{self.path}` has no record of trial `{name}`", "a run that has finished this trial")
            answer = replace(answers[name], golden=golden.get(requests[name]))
            found.append(replace(case, recorded=answer))
        return found

    def _trial(self, case: Case) -> str:
        header = case.header
        if header.trial is None:
            raise refused(f"`{case.files[0]}` names no trial", "a map that says which trial it is", "$.trial")
        if header.plan != self._run.plan.digest:
            raise refused(
                f"`{case.files[0]}` is of plan `{(header.plan or 'none')[:12]}`, "
                f"`{self.path}` of plan `{self._run.plan.digest[:12]}`",
                "a run of the same plan: its digest names what is asked and injected",
                "$.plan",
            )
        return str(header.trial["id"])
