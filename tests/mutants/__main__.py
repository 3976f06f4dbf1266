"""Run the mutants: first their tests on the sources as they are, then each mutant against its own.

Status 1: one survives; 2: one cannot be run, or the tests are red without any.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor, as_completed

from .catalogue import MUTANTS
from .mutant import Mutant
from .run import LIMIT_S, MutantError, Verdict, check_baseline, end_all, run_mutant


def chosen(only: list[str], shard: str) -> list[Mutant]:
    """Those whose name holds one of `only` (all, if none is given); of these every n-th from the i-th on."""
    mutants = [mutant for mutant in MUTANTS if not only or any(part in mutant.name for part in only)]
    i, n = (int(part) for part in shard.split("/"))
    if not 1 <= i <= n:
        raise ValueError(f"--shard {shard}: expected i/n with 1 <= i <= n")
    return mutants[i - 1 :: n]


def page(verdicts: list[Verdict]) -> str:
    """The sections of docs/mutants.md: by the file whose test turned red, in the order of the catalogue."""
    sections: dict[str, list[str]] = {}
    for verdict in verdicts:
        mutant = verdict.mutant
        file, _, test = (verdict.killer or "survived").partition("::")
        if test and not file.startswith("tests/"):  # pytest names it from where it has found its settings
            file = f"tests/{file}"
        item = textwrap.fill(f"- **{mutant.name}** ({mutant.breaks}): {mutant.what}.", 120, subsequent_indent="  ")
        sections.setdefault(file, []).append(f"{item}\n  `{test}`" if test else item)
    return "\n\n".join("\n".join([f"## `{file}`", "", *sections[file]]) for file in sorted(sections))


def _stopped(number: int, _frame: object) -> None:
    end_all()
    os._exit(128 + number)


def main() -> int:
    parser = argparse.ArgumentParser(prog="mutants", description=__doc__)
    parser.add_argument("--list", action="store_true", help="list the mutants and run none")
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="those whose name holds this; may be given again"
    )
    parser.add_argument("--shard", default="1/1", metavar="I/N", help="the I-th of N parts")
    parser.add_argument("--jobs", type=int, default=1, help="mutants at a time")
    parser.add_argument(
        "--limit", type=float, default=LIMIT_S, metavar="S", help="a run that takes longer hangs, which is red, too"
    )
    parser.add_argument(
        "--no-baseline", action="store_true", help="skip the run without a mutant; it proves nothing then"
    )
    options = parser.parse_args()
    try:
        mutants = chosen(options.only, options.shard)
    except ValueError as error:
        parser.error(str(error))
    if not mutants:
        parser.error("no mutant has such a name; --list shows them")
    if options.list:
        for mutant in mutants:
            print(f"{mutant.name:32} {mutant.breaks:14} {mutant.file:32} {mutant.what}")
        return 0
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stopped)
    verdicts: dict[str, Verdict] = {}
    errors: list[str] = []
    if not options.no_baseline:
        try:
            print(f"{check_baseline(mutants)} selections of tests are green without a mutant", flush=True)
        except MutantError as error:
            print(error, file=sys.stderr)
            return 2
    with ThreadPoolExecutor(options.jobs) as pool:
        runs = {pool.submit(run_mutant, mutant, options.limit): mutant for mutant in mutants}
        for run in as_completed(runs):
            try:
                verdict = verdicts[runs[run].name] = run.result()
            except MutantError as error:
                errors.append(str(error))
                print(f"cannot be run: {error}", file=sys.stderr, flush=True)
                continue
            word = "SURVIVED" if verdict.survived else "killed  "
            print(f"{word} {verdict.mutant.name:32} {verdict.seconds:6.1f} s  {verdict.killer}", flush=True)
    print("\n" + page([verdicts[mutant.name] for mutant in mutants if mutant.name in verdicts]))
    survivors = [verdict for verdict in verdicts.values() if verdict.survived]
    print(
        f"\n{len(verdicts) - len(survivors)} of {len(mutants)} killed, {len(survivors)} survived, {len(errors)} could "
        f"not be run"
    )
    return 2 if errors else int(bool(survivors))


if __name__ == "__main__":
    sys.exit(main())
