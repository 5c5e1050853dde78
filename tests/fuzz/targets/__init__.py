"""All targets by name."""

from __future__ import annotations

from tests.fuzz.contract import Target
from tests.fuzz.targets import headers, keystores, records, yaml_files

TARGETS: dict[str, Target] = {
    target.name: target for target in (*headers.TARGETS, *keystores.TARGETS, *yaml_files.TARGETS, *records.TARGETS)
}
