"""The loop over rounds: a scripted person judges a served run by a hidden rule while `triptych loop` runs beside it.

The person ranks, votes and gives thumbs over HTTP. Each round's policy is compared with the last one by the hidden
rule, on prompts that neither saw; then somebody ranks by the reversed rule, and the loop has to reject that round; and
one round is killed with all its processes at random moments, and has to end as it does without a kill.

Without --recipe, on a world of its own of three words an answer, which takes minutes. What is done is kept in the
folder: the same command goes on where it was interrupted.

python -m infra.bench.loop_rounds [--folder runs/loop-rounds] [--rounds 3] [--kills 10]
python -m infra.bench.loop_rounds --recipe infra/recipes/demo.yaml --rule brevity --folder runs/loop-demo
    a recipe whose annotator is a function: the person's rankings count beside the function's
"""

import argparse
import json
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from cluster.feedback import open_feedback
from cluster.recipe.loading import load_recipe
from cluster.run.atomic import write_json
from cluster.run.folder import RunFolder
from cluster.run.trail import Decision, open_round, read_trail
from cluster.run.versions import Versions
from infra.bench.rounds import kills
from infra.bench.rounds.commands import POLL_SECONDS, command, label_page
from infra.bench.rounds.person import Chatter, Person, sample
from infra.bench.rounds.world import HELD_OUT, RULES, write_world
from infra.bench.scenarios.command import wait_until
from infra.bench.servers.start import free_port, own
from pipelines.data.prompts import all_prompts
from pipelines.evaluate.stats import paired_change

SAMPLES = 3
VOTES = 4
# Settings for a recipe that was given.
LOOP = ("loop.canary_share=0.3", "loop.canary_thumbs=6", "loop.canary_minutes=2", "loop.promote_if=not worse")


@dataclass
class Bench:
    """The options, the run and the results, which all steps of the bench share.

    Attributes:
        given: the options.
        recipe: the path of the recipe.
        run: the run folder.
        prompts: held-out prompts, on which policies are compared.
        state: the results so far, kept in a file.
    """

    given: argparse.Namespace
    recipe: Path
    run: RunFolder
    prompts: Sequence[str]
    state: dict[str, Any]

    @property
    def log(self) -> Path:
        """The file for what the commands print."""
        return self.given.folder / "commands.log"

    @property
    def seconds(self) -> float:
        """The longest wait for a round."""
        return 60.0 * self.given.minutes

    def keep(self, **results: Any) -> None:
        """Adds results."""
        self.state |= results
        write_json(self.given.folder / "bench.json", self.state)

    def token(self, name: str) -> str:
        """Makes a new token for an annotator, who is added if the name is new."""
        with open_feedback(self.run.feedback_url) as database:
            return database.add_annotator(name, renew=name in database.annotators())

    def ended(self, number: int) -> Decision | None:
        """Finds the line that ends a round."""
        return next((one for one in read_trail(self.run.root) if one.round == number and one.step == "end"), None)


def prepare(given: argparse.Namespace) -> Bench:
    """Writes the world, or reads the recipe that was given."""
    folder: Path = given.folder.absolute()
    given.folder = folder
    folder.mkdir(parents=True, exist_ok=True)
    if given.recipe:
        path = folder / "recipe.yaml"
        loaded = load_recipe(given.recipe, [f"run={folder / 'run'}", *LOOP, *given.overrides])
        path.write_text(yaml.safe_dump(loaded.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
        unused = all_prompts(loaded)[loaded.collect.prompts :]
        prompts = [text.messages[-1]["content"] for text in unused[-HELD_OUT:]]
    else:
        path = write_world(folder, given.seed)
        prompts = json.loads((folder / "held-out.json").read_text(encoding="utf-8"))
    kept = folder / "bench.json"
    state = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {"policies": {}, "failed": []}
    return Bench(given, path, RunFolder(folder / "run"), prompts, state)


def first_round(bench: Bench) -> None:
    """Makes the first round; the person ranks on the label page while `triptych run` waits."""
    if bench.run.manifest("report"):
        return
    bench.run.create()
    least = load_recipe(bench.recipe).collect.min_rankings
    token = bench.token("pat")
    begin = time.monotonic()
    with label_page(bench.run, bench.log) as url, command(bench.log, "run", str(bench.recipe)) as process:
        person, ranked = Person(url, token, RULES[bench.given.rule]), 0

        def is_done() -> bool:
            nonlocal ranked
            if ranked < least:
                ranked += person.rank(least - ranked)
            return process.poll() is not None

        wait_until(is_done, "the first round", seconds=bench.seconds, poll_seconds=POLL_SECONDS)
        if process.returncode:
            raise SystemExit(f"`triptych run` ended with {process.returncode}: see {bench.log}")
    bench.keep(first_seconds=time.monotonic() - begin)


def measure(bench: Bench, url: str, number: int) -> None:
    """Grades the live policy by the hidden rule, on the held-out prompts."""
    if str(number) in bench.state["policies"]:
        return
    rule = RULES[bench.given.rule]
    texts = sample(url, "policy", bench.prompts, SAMPLES, bench.given.seed)
    grades = [sum(map(rule, answers)) / len(answers) for answers in texts]
    live = Versions(bench.run, "policy").live().weights
    bench.keep(policies=bench.state["policies"] | {str(number): {"grades": grades, "weights": live, "said": texts[0]}})


def rounds(bench: Bench) -> None:
    """Serves the run with the loop beside it; the person judges for each round, and reversed labels make the last one
    bad."""
    last, count = bench.given.rounds + 1, load_recipe(bench.recipe).loop.min_new
    if bench.ended(last + 1):
        return
    rule, port = RULES[bench.given.rule], free_port()
    bad_person = Person(f"http://127.0.0.1:{port}", bench.token("mal"), rule, reversed_rule=True)
    person = Person(f"http://127.0.0.1:{port}", bench.token("pat"), rule)
    with own(bench.run, port, bench.given.folder / "server.log"):
        url = f"http://127.0.0.1:{port}"
        measure(bench, url, 1)
        grades = sorted(bench.state["policies"]["1"]["grades"])
        chatter = Chatter(url, rule, bench.prompts[::-1], grades[len(grades) // 2])
        with chatter, command(bench.log, "loop", str(bench.run.root)) as loop:
            for number in range(2, last + 2):
                steps = open_round(read_trail(bench.run.root))
                if not bench.ended(number) and not steps:
                    if number <= last:
                        person.rank(count)
                        person.vote(bench.prompts[number * VOTES : (number + 1) * VOTES])
                    else:
                        bad_person.rank(count)

                def is_over(number: int = number) -> bool:
                    # Thumbs come in while a policy is on trial, so that they alone begin no round.
                    chatter.rates = "trial" in open_round(read_trail(bench.run.root))
                    return bench.ended(number) is not None

                wait_until(is_over, f"the end of round {number}", loop, bench.seconds, POLL_SECONDS)
                print(*(one for one in read_trail(bench.run.root) if one.round == number), sep="\n", flush=True)
                measure(bench, url, number)
        seen = chatter.seen
        bench.keep(answered=dict(seen.answered), failed=bench.state["failed"] + seen.failed, seen=sorted(seen.weights))


def kill(bench: Bench) -> None:
    """Kills a round at random moments, and compares how it ends."""
    done: list[dict[str, Any]] = bench.state.get("kills", [])
    if len(done) >= bench.given.kills:
        return
    prepared = kills.prepare(bench.run, bench.given.folder, RULES[bench.given.rule], bench.log)
    if "undisturbed" not in bench.state:
        end, seconds = kills.undisturbed(prepared, bench.log, bench.seconds)
        bench.keep(undisturbed=[end.decisions, end.present, end.weights], round_seconds=seconds)
    expected = json.loads(json.dumps(bench.state["undisturbed"]))
    for after in kills.moments(bench.given.kills, bench.state["round_seconds"], bench.given.seed)[len(done) :]:
        end = kills.killed(prepared, bench.log, after, bench.seconds)
        found = json.loads(json.dumps([end.decisions, end.present, end.weights]))
        same = [one == other for one, other in zip(found, expected, strict=True)]
        done.append({"after": after, "decisions": same[0], "present": same[1], "weights": same[2]})
        bench.keep(kills=done)
        print(f"killed after {after:.1f} s: {done[-1]}", flush=True)


def report(bench: Bench) -> list[str]:
    """Prints the table, and returns what is not as it should be."""
    wrong = [f"a request failed: {reason}" for reason in bench.state["failed"][:3]]
    table = Table("round", "its end", "seconds", "hidden rule", "change from the last round (95 %)")
    policies, trail = bench.state["policies"], read_trail(bench.run.root)
    better, last = 0, bench.given.rounds + 1
    for number in range(1, last + 2):
        if str(number) not in policies:
            continue
        grades = policies[str(number)]["grades"]
        steps = {one.step: one for one in trail if one.round == number}
        end, begun = steps.get("end"), steps.get("begin")
        change = ""
        if number > 1:
            found = paired_change(policies[str(number - 1)]["grades"], grades)
            change = f"{found.change:+.3f} ({found.low:+.3f} to {found.high:+.3f})"
            better += (found.low or 0.0) > 0
            wrong += [f"round {number} is worse than the last: {change}"] if (found.high or 0.0) < 0 else []
        seconds = f"{end.time - begun.time:.0f}" if end and begun else f"{bench.state.get('first_seconds', 0):.0f}"
        ended = f"{end.decision}: {steps['gates'].decision} by the gates" if end else "`triptych run`"
        table.add_row(str(number), ended, seconds, f"{sum(grades) / len(grades):.3f}", change)
    wrong += [] if better else ["no round is better than the last beyond chance"]
    bad = bench.ended(last + 1)
    if bad is None or bad.decision != "kept":
        wrong.append(f"the round of reversed labels ended as {bad.decision if bad else 'nothing'}")
    known = set(Versions(bench.run, "policy").kept())
    unknown = [name for name in bench.state.get("seen", []) if name not in known]
    wrong += [f"an answer named weights that are no version: {name}" for name in unknown]
    Console().print(table)
    killed = bench.state.get("kills", [])
    print(f"{sum(bench.state.get('answered', {}).values())} chat requests {bench.state.get('answered')}, ", end="")
    print(f"{len(bench.state['failed'])} failed; a round without a server: {bench.state.get('round_seconds', 0):.0f} s")
    for part in ("decisions", "present", "weights"):
        print(f"after {len(killed)} kills the same {part}: {sum(one[part] for one in killed)}")
        wrong += [f"{part} after a kill at {one['after']:.1f} s differ" for one in killed if not one[part]]
    return wrong


def main() -> None:
    """Prints the table; ends with 1 if something is not as it should be."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--folder", type=Path, default=Path("runs/loop-rounds"), help="for the run and all results")
    words.add_argument("--recipe", type=Path, help="another recipe than the world's own")
    words.add_argument("--rule", choices=sorted(RULES), default="taste", help="what the person likes")
    words.add_argument("--rounds", type=int, default=3, help="of the loop, before the bad one")
    words.add_argument("--kills", type=int, default=10, help="random moments at which a round is killed")
    words.add_argument("--minutes", type=float, default=60.0, help="the longest wait for a round")
    words.add_argument("--seed", type=int, default=1)
    words.add_argument("overrides", nargs="*", metavar="key=value", help="keys of the recipe that was given")
    given = words.parse_args()
    # A shell's background processes ignore Ctrl-C, and the commands would too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # The commands end with the benchmark, however it ends.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    bench = prepare(given)
    first_round(bench)
    kill(bench)
    rounds(bench)
    wrong = report(bench)
    print(*(f"WRONG: {one}" for one in wrong), sep="\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
