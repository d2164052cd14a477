"""What a check of the host finds."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """The result of one check; `advice` says what to do, and is empty if all is well.

    `warning` says what follows from a choice that the operator may have made.
    """

    subject: str
    advice: str = ""
    warning: str = ""

    @property
    def ok(self) -> bool:
        return not self.advice

    def describe(self) -> str:
        if self.advice:
            return f"FAIL  {self.subject}: {self.advice}"
        return f"warn  {self.subject}: {self.warning}" if self.warning else f"ok    {self.subject}"

    def as_json(self) -> dict[str, str]:
        """The same for a program: `result` is ok, warn or FAIL; `message` says what to do."""
        result = "FAIL" if self.advice else "warn" if self.warning else "ok"
        return {
            "result": result,
            "subject": self.subject,
            "message": self.advice or self.warning,
        }


def at_least(program: str, version: str, wanted: tuple[int, int], why: str) -> Finding:
    match = re.match(r"(\d+)\.(\d+)", version)
    enough = match is not None and (int(match[1]), int(match[2])) >= wanted
    advice = "" if enough else f"{wanted[0]}.{wanted[1]} or newer is needed: {why}"
    return Finding(f"{program} {version}", advice)
