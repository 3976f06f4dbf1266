"""`python -m storm`, with tests/ on the path: raise storms, one seed after another, and check what became of each."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

from storm.checker import Allowed, check, figures
from storm.history import read
from storm.places import Options
from storm.plan import KINDS
from storm.runner import messages_in, raise_storm, tell


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m storm", description=__doc__)
    parser.add_argument("--engine", choices=["shm", "mooncake"], default="shm")
    parser.add_argument("--seed", type=int, default=None, help="default: from the clock; it is printed")
    parser.add_argument("--seeds", type=int, default=1, help="so many storms, with this seed and those that follow")
    parser.add_argument("--kills", type=int, default=50, help="SIGKILLs, after which a storm ends")
    parser.add_argument("--seconds", type=float, default=120.0, help="after which a storm ends in any case")
    parser.add_argument(
        "--kinds", default="", help=f"these and not those that the seed draws, by comma; or 'all': {', '.join(KINDS)}"
    )
    parser.add_argument(
        "--history", type=Path, default=Path("storm.jsonl"), help="where events go; the nodes' messages go beside it"
    )
    parser.add_argument(
        "--results", type=Path, help="a line is appended for each storm; seeds that are in it are left out"
    )
    parser.add_argument("--check", type=Path, help="raise no storm: check this history again")
    for name in ("encode-nodes", "encoders", "schedulers", "in-flight", "longest", "block-size"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Options, name.replace("-", "_")))
    parser.add_argument(
        "--pause", type=float, default=Options.pause_s, help="seconds from one fault to the next, at most"
    )
    parser.add_argument("--deadline", type=float, default=Options.deadline_s, help="seconds that a request may take")
    parser.add_argument(
        "--peer-timeout", type=float, default=Options.peer_timeout_s, help="seconds of silence that are taken for death"
    )
    parser.add_argument(
        "--two-hosts", action="store_true", help="nodes in two network namespaces, with keys (root; engine mooncake)"
    )
    parser.add_argument(
        "--shm-size", default="", help="raise it in a mount namespace with a /dev/shm of this size (root): 64M, say"
    )
    for name in Allowed.__dataclass_fields__:
        option = name.removesuffix("_s").replace("_", "-")
        parser.add_argument(f"--allow-{option}", type=float, default=getattr(Allowed(), name), metavar="S", dest=name)
    return parser.parse_args(argv)


def in_a_namespace_of_its_own(size: str) -> None:
    """Run this very command again where /dev/shm is its own (the size is in the environment of nobody else)."""
    words = [sys.executable, "-m", "storm", *sys.argv[1:]]
    script = 'mount -t tmpfs -o size="$1" tmpfs /dev/shm && shift && exec "$@"'
    os.execvp("unshare", ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", size, *words])


def is_bounded(size: str) -> bool:
    """Whether /dev/shm is one that may be filled: of this size, and nobody else's."""
    if not size:
        return False
    found = os.statvfs("/dev/shm")
    number = int(size.rstrip("MmGg")) << (30 if size[-1] in "Gg" else 20)
    return found.f_blocks * found.f_frsize <= number


def judge(path: Path, allowed: Allowed) -> tuple[list[str], dict[str, object]]:
    events = read(path)
    return [str(violation) for violation in check(events, allowed)], figures(events, allowed)


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    allowed = Allowed(**{name: getattr(args, name) for name in Allowed.__dataclass_fields__})
    if args.check:
        violations, shown = judge(args.check, allowed)
        tell(json.dumps(shown, indent=1))
        for text in violations:
            tell(f"VIOLATION {text}")
        return 1 if violations else 0
    if args.shm_size and not is_bounded(args.shm_size):
        in_a_namespace_of_its_own(args.shm_size)
    first = args.seed if args.seed is not None else int(time.time()) % 1_000_000
    kinds = KINDS if args.kinds == "all" else tuple(kind for kind in args.kinds.split(",") if kind)
    unknown = set(kinds) - set(KINDS)
    if unknown:
        tell(f"unknown kinds: {', '.join(sorted(unknown))}")
        return 2
    done = set()
    if args.results and args.results.exists():
        done = {(line["engine"], line["seed"]) for line in map(json.loads, args.results.read_text().splitlines())}
    failed = False
    for seed in range(first, first + args.seeds):
        if (args.engine, seed) not in done:
            failed |= one(args, seed, kinds, allowed)
    return 1 if failed else 0


def one(args: argparse.Namespace, seed: int, kinds: tuple[str, ...], allowed: Allowed) -> bool:
    """One storm. True if something went wrong."""
    history = (
        args.history.with_name(f"{args.history.stem}-{args.engine}-{seed}{args.history.suffix}")
        if args.seeds > 1
        else args.history
    )
    history.unlink(missing_ok=True)
    options = Options(
        engine=args.engine,
        seed=seed,
        kills=args.kills,
        seconds=args.seconds,
        history=history.absolute(),
        kinds=kinds or None,
        encode_nodes=args.encode_nodes,
        encoders=args.encoders,
        schedulers=args.schedulers,
        in_flight=args.in_flight,
        longest=args.longest,
        block_size=args.block_size,
        pause_s=args.pause,
        deadline_s=args.deadline,
        peer_timeout_s=args.peer_timeout,
        two_hosts=args.two_hosts,
        bounded_memory=is_bounded(args.shm_size),
    )
    tell(f"storm: engine {args.engine}, seed {seed}, {args.kills} kills or {args.seconds:g} s, history {history}")
    begun, trouble = time.monotonic(), ""
    with messages_in(history):
        try:
            raise_storm(options)
        except Exception as error:
            trouble = f"the storm itself failed: {type(error).__name__}: {error}"
    violations, shown = judge(history, allowed)
    violations += [trouble] if trouble else []
    shown["seconds"] = round(time.monotonic() - begun, 1)
    tell(json.dumps(shown))
    for text in violations:
        tell(f"VIOLATION {text}")
    tell(f"storm: seed {seed} {'held' if not violations else f'broke {len(violations)} rules; its history is kept'}")
    if args.results:
        with args.results.open("a") as file:
            file.write(json.dumps({"engine": args.engine, "seed": seed, "violations": violations, **shown}) + "\n")
    return bool(violations)


if __name__ == "__main__":
    sys.exit(main())
