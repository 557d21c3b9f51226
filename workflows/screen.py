"""Screen the crystals of files through jobflow: run here, or hand over to FireWorks.

    python workflows/screen.py *.cif                        # runs in this process, into the store of get_store()
    python workflows/screen.py *.cif --fireworks FILE       # adds the workflow to the LaunchPad that FILE describes

`fieldflows screen` does the first of these with a progress bar; this script is the place to start from for flows of
your own.
"""

from __future__ import annotations

import argparse

from jobflow import run_locally

from fieldflows import DielectricMaker
from fieldflows.inputs import read_structures
from fieldflows.store import get_store


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--model", default="dielectric")
    parser.add_argument("--store")
    parser.add_argument("--fireworks", metavar="LAUNCHPAD_FILE")
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args(arguments)

    structures, failures = read_structures(options.files)
    for failure in failures:
        print(f"left out {failure.source}: {failure.message}")
    flow = DielectricMaker(model=options.model).make(structures)
    print(f"{len(structures)} structures in {len(flow.jobs)} jobs")
    if options.dry_run:
        return
    store = get_store(options.store)
    if options.fireworks:
        from fireworks import LaunchPad
        from jobflow.managers.fireworks import flow_to_workflow

        from fieldflows.store.worker import WorkerStore

        # A store that is passed travels in the workflow, password included: without --store, each worker takes its own.
        chosen = store if options.store else WorkerStore()
        LaunchPad.from_file(options.fireworks).add_wf(flow_to_workflow(flow, store=chosen))
    else:
        run_locally(flow, store=store, ensure_success=True, raise_immediately=True)


if __name__ == "__main__":
    main()
