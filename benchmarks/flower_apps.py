"""One Flower app, unchanged, under Flower's own simulation and under `fedsim flower`: milliseconds per client.

    python benchmarks/flower_apps.py                            half an hour on 2 cores
    python benchmarks/flower_apps.py --case 100 --only template
    python benchmarks/flower_apps.py --quick                    a smoke test of a minute

The app is `flower_app/`: 784-200-200-10, 50 random images a client, batches of 10, one epoch, all clients in each
round, Flower's FedAvg; after every round the model is measured on 100 rows. The client's body is written in two ways,
and a third does no work, so that what it costs is the engine alone. Each contender runs in a fresh process, one after
another and in turn; `bare` is the same work without an engine. A round lasts from the end of the one before to its own
end; the first is counted from the start of the process.
"""

import argparse
import statistics
import sys
from collections.abc import Mapping

from _contenders import HERE, Case, Contender, Timing, as_rows, check_alike, cost, measure, render, write

from fedsim.engine.habits import MEMORY

BODIES = ("tight", "template", "nothing")
COHORTS = {100: 10, 1000: 8}
"""Rounds, by clients a round; in the second and the fourth of a thousand clients the object store grows."""
WANTED = 8.0
"""Times that stock takes as long per client, where the client's body is tight."""
CONTENDERS = {
    "ours": Contender((sys.executable, str(HERE / "_app_ours.py"))),
    "bare": Contender((sys.executable, str(HERE / "_app_bare.py")), environment=MEMORY),  # as our workers have it
    "stock": Contender((sys.executable, str(HERE / "_app_stock.py"))),
}
LEGEND = """\
tight      the client trains on a net that its process keeps, by slices of its rows and one fused step
template   as in Flower's PyTorch template: a new net, DataLoader and optimiser for every message
nothing    the client sends back what it got: messages, records and FedAvg remain
ours       `fedsim flower`, 2 Ray workers; replies checked, records and the model written
bare       the app's ClientApp called in two processes at once, half of a round each, without an engine
stock      Flower's simulation, 2 Ray actors of one core; started as `flwr run` starts it, without a SuperLink"""


def main() -> None:
    """Run both engines in every case, print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2, help="how often each engine runs in each case")
    parser.add_argument("--case", type=int, choices=list(COHORTS), help="clients a round")
    parser.add_argument("--only", choices=BODIES, help="one of the client's bodies")
    parser.add_argument("--quick", action="store_true", help="one small case, once")
    options = parser.parse_args()
    cases = [
        Case(body, cohort, rounds)
        for body in BODIES
        for cohort, rounds in COHORTS.items()
        if options.only in (None, body) and options.case in (None, cohort)
    ]
    cases, repeats = ([Case(BODIES[0], 10, 2)], 1) if options.quick else (cases, options.repeats)
    table = {case: measure(case, CONTENDERS, repeats) for case in cases}
    print("\n".join([render(table, "ours"), "", LEGEND, "", *ratios(table)]))
    check_alike({case: timings for case, timings in table.items() if case.net != "nothing"})
    if not options.quick:
        print(f"\nwritten to {write('flower_apps', {'timings': as_rows(table)})}")


def ratios(table: Mapping[Case, Mapping[str, Timing]]) -> list[str]:
    """How many times as long stock takes: per client from round 2 on, to the end of round 1, and as bare calls take."""
    lines = [f"{'stock over ours':26}{'per client':>12}{'to end of round 1':>19}{'over bare calls':>17}"]
    for case, timings in table.items():
        ours, bare, stock = timings["ours"], timings["bare"], timings["stock"]
        ratio = cost(stock) / cost(ours)
        first = statistics.median(stock.first_round) / statistics.median(ours.first_round)
        says = f"  at least {WANTED:.0f}: {'yes' if ratio >= WANTED else 'no'}" if case.net == "tight" else ""
        lines.append(f"{case.title:26}{ratio:>11.1f}x{first:>18.1f}x{cost(stock) / cost(bare):>16.1f}x{says}")
    return lines


if __name__ == "__main__":
    main()
