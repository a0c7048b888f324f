"""`python -m tests.fuzz` tries new cases for twenty minutes; with a kind and a seed, that one."""

import sys
import time
from collections import Counter
from collections.abc import Iterator
from random import SystemRandom

from tests.fuzz.kinds import KINDS
from tests.fuzz.worker import outcomes

MINUTES = 20


def fresh() -> Iterator[tuple[str, int]]:
    """Every kind by turns, with new seeds, until the time is over."""
    end, seed = time.monotonic() + 60 * MINUTES, SystemRandom().randrange(2**32)
    while True:
        for kind in KINDS:
            if time.monotonic() > end:
                return
            yield kind, seed
        seed += 1


def main(arguments: list[str]) -> int:
    """Run them; prints each failure with how to repeat it, and returns 1 if there is one."""
    cases = [(arguments[0], int(arguments[1]))] if arguments else fresh()
    counts: Counter[str] = Counter()
    for outcome in outcomes(cases):
        answer = "failed" if outcome.failure else "refused" if outcome.code else "done"
        counts[answer] += 1
        if outcome.failure or arguments:
            print(
                f"\n{outcome.change}: smidgen {outcome.command}\n{outcome.failure or outcome.line}"
            )
            print(f'repeat it: python -m tests.fuzz "{outcome.kind}" {outcome.seed}', flush=True)
    print(", ".join(f"{number} {answer}" for answer, number in sorted(counts.items())))
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
