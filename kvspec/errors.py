"""Every way kvspec can fail: one diagnostic type, one exception tree, one catalogue of codes.

A user mistake never ends in a traceback. It ends in a `Diagnostic`: a stable code, what is wrong with the
value, where it stands (file, line, column, JSON path), what was expected, and a hint where one can act.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, Self

CODES: dict[str, str] = {
    # 1xx: the YAML text
    "KVS101": "the file cannot be read",
    "KVS102": "the text is not YAML 1.2",
    "KVS103": "a key appears twice in one mapping",
    "KVS104": "the file is over a size, depth or alias limit",
    "KVS105": "an include cannot be followed",
    "KVS106": "an override (`--set`) cannot be applied",
    # 2xx: the spec against its schema
    "KVS201": "a value has the wrong type",
    "KVS202": "a key is not known",
    "KVS203": "a value is not one of the allowed words",
    "KVS204": "a required key is missing",
    "KVS205": "a number is out of range or not a number",
    "KVS206": "two keys of one mapping do not go together",
    "KVS207": "a text or list is empty, too short or too long",
    "KVS208": "the spec version is not supported",
    "KVS209": "two entries share a name",
    "KVS210": "the value breaks another rule of the schema",
    # 3xx: the plan
    "KVS301": "a selector matches no site",
    "KVS302": "a cell expects less than one flip",
    "KVS303": "a rate cannot be converted for this geometry",
    "KVS304": "a policy is not defined for this storage format",
    "KVS305": "the plan is larger than the limit",
    "KVS306": "the geometry of the model is not known",
    "KVS307": "a cell cannot be told from the golden floor",
    "KVS308": "a power design has no cells to compare",
    # 4xx: the engine
    "KVS401": "this is declared, but the engine does not inject it yet",
    "KVS402": "the attention backend or cache layout is not supported",
    "KVS403": "the start-up canary read back something else than was planned",
    "KVS404": "the flips that landed differ from the flips that were planned",
    "KVS405": "a prompt does not fit into the model",
    "KVS406": "the engine failed",
    "KVS407": "the engine's geometry differs from the plan's",
    "KVS408": "an engine setting is refused",
    "KVS409": "a choice is not a token of the model",
    # 5xx: records, runs and fault maps
    "KVS501": "the run folder cannot be written",
    "KVS502": "the run folder belongs to something else",
    "KVS503": "the run folder belongs to another plan",
    "KVS504": "the run folder was made in another environment",
    "KVS505": "a record cannot be read",
    "KVS506": "the run holds nothing to score",
    "KVS507": "the header of a fault map is not valid",
    "KVS508": "a file is no fault map, or is truncated or damaged",
    "KVS509": "a fault map holds a value outside its geometry",
    "KVS510": "a fault map is out of order or holds a site twice",
    "KVS511": "a fault map differs from its own hash, count, key or record",
    "KVS512": "a fault map is for another geometry",
    "KVS513": "a fault map is over a limit",
    "KVS514": "the trials asked for cannot be made into maps",
    "KVS515": "a fault map does not say enough to be run, or not what is here",
    # 9xx: prerequisites
    "KVS901": "a package is missing or too old",
    "KVS902": "the model cannot be found",
}
"""Every code and its title. A test asserts that each one is raised somewhere and documented."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a text file, counted from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One finding about one value."""

    code: str
    """Stable identifier, a key of `CODES`."""
    message: str
    """What is wrong, lower case, the offending value in backticks, no final stop."""
    mark: Mark | None = None
    """Where the value stands in the file."""
    path: str | None = None
    """JSON path of the value, such as `$.faults[0].rate`."""
    expected: str | None = None
    """What would have been accepted."""
    hint: str | None = None
    """What to do, only where there is something to do."""
    severity: Literal["error", "warning"] = "error"

    def __post_init__(self) -> None:
        if self.code not in CODES:
            raise ValueError(f"undeclared diagnostic code {self.code}")

    def to_json(self) -> dict[str, Any]:
        """Plain data for `--format json`."""
        data = asdict(self)
        data["title"] = CODES[self.code]
        return data

    def __str__(self) -> str:
        lines = [f"{self.severity}[{self.code}]: {self.message}"]
        place = "  ".join(str(part) for part in (self.mark, self.path) if part is not None)
        if place:
            lines.append(f"  at {place}")
        if self.expected:
            lines.append(f"  expected {self.expected}")
        if self.hint:
            lines += ["", f"hint: {self.hint}"]
        return "\n".join(lines)


class KvspecError(Exception):
    """Base of all errors that kvspec reports to people. Carries one or more diagnostics."""

    exit_code: ClassVar[int] = 2

    def __init__(self, diagnostics: Diagnostic | Iterable[Diagnostic]) -> None:
        if isinstance(diagnostics, Diagnostic):
            diagnostics = (diagnostics,)
        self.diagnostics = tuple(diagnostics)
        super().__init__("\n\n".join(str(d) for d in self.diagnostics))

    @classmethod
    def one(
        cls,
        code: str,
        message: str,
        *,
        mark: Mark | None = None,
        path: str | None = None,
        expected: str | None = None,
        hint: str | None = None,
    ) -> Self:
        """Build the error from a single diagnostic."""
        return cls(Diagnostic(code, message, mark, path, expected, hint))


class SpecError(KvspecError):
    """The spec is wrong: YAML text, schema or meaning (1xx, 2xx). Mend the file and run again."""


class PlanError(KvspecError):
    """The spec is well formed, but no sound campaign follows from it (3xx)."""


class RecordsError(KvspecError):
    """A run folder or fault map cannot be used as asked (5xx). Nothing was overwritten."""


class EngineError(KvspecError):
    """The engine refused, failed, or did not inject what was planned (4xx). Finished trials are kept."""

    exit_code = 3


class PrerequisiteError(KvspecError):
    """A package, model or device is missing (9xx). The hint holds the command that gets it."""

    exit_code = 3
