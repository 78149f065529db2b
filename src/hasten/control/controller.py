"""How much to draft: spend verify rows and draft passes where they buy most, down to none.

Every round, drafters are asked if they may (``accounts``) and, where each level costs a model's pass, if the best depth makes more
tokens a second than not drafting. Then the nodes of all sequences, by calibrated survival, are kept up to the N that maximises

    (sequences + sum of survivals of the N best) / (drafting seconds + cost of (rows + N))

N = 0 included (the goodput form of SmartSpec, 2406.14066, section 4, on calibrated survivals).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean

from hasten.control import accounts, chains, rules
from hasten.control.accounts import Own, Savings, Standing, Tally
from hasten.control.calibrator import ALL, Calibrator
from hasten.control.cost import Average
from hasten.control.interruption import UsualTime
from hasten.control.lengths import Lengths, why_not_read
from hasten.control.rounds import Round
from hasten.control.selection import Offer, Ranked, best_count, fairest_count, likeliest_first, offers, seconds_by_count, survivals
from hasten.control.step_costs import StepCosts
from hasten.control.upkeep import Upkeep
from hasten.core.config import SpeculationParams
from hasten.core.types import DraftTree

LEAST_SURVIVAL = 0.01  # less likely nodes are not worth a row anywhere
PROBE_DEPTH = 2
DEEPEST_ASKED = 12  # levels considered when it is decided if a model should draft
COMPANY = 4  # sequences of a step from which on drafters stand on accounts of their own
IN_COMPANY = " in company"
IN_THE_RED = "it has lately cost more than it brought; it earns another try while decoding is plain"


@dataclass(slots=True)
class Controller:
    """Decides for one engine. ``rule`` and ``depth`` are the setting ``control``."""

    costs: StepCosts
    most_nodes: int = 32
    rule: str = "auto"
    depth: int = 0
    calibrator: Calibrator = field(default_factory=Calibrator)
    standings: defaultdict[tuple[str, str], Standing] = field(default_factory=lambda: defaultdict(Standing))
    lengths: Lengths = field(default_factory=Lengths)
    tallies: defaultdict[str, Tally] = field(default_factory=lambda: defaultdict(Tally))
    entropy: rules.EntropyThreshold = field(default_factory=rules.EntropyThreshold)
    upkeep: Upkeep = field(default_factory=Upkeep)
    _own: defaultdict[tuple[str, int], Own] = field(default_factory=lambda: defaultdict(Own))
    _gain: Average = field(default_factory=lambda: Average(0.1))
    _usual: UsualTime = field(default_factory=UsualTime)
    _planned: dict[str, tuple[int, int, float]] = field(default_factory=dict)  # a paid drafter's group, depth and gain
    _company: str = ""
    _savings: Savings = field(default_factory=Savings)
    _steps: int = 1  # since the last one that was looked at

    @property
    def measured(self) -> bool:
        """Whether anything is known of what steps cost."""
        return self.costs.curve.known

    def open(self, rounds: Sequence[Round], rested: int = 0, joining: int = 0, pure: bool = True) -> bool:
        """A step begins, after ``rested`` plain ones that were not looked at, while ``joining`` more prompts are read. False when a
        ``pure`` one, that does nothing else, should be plain: what that costs must be known, the more often the less is gained."""
        self._steps = 1 + rested
        self._company = IN_COMPANY if len(rounds) + joining >= COMPANY else ""
        self.costs.open([round.context for round in rounds], joining)
        if not pure or not self.measured or self.rule != "auto" or any(round.wish.mode == "on" for round in rounds):
            return True
        return not self.costs.reference_due(self._gain.value or 1.0)

    # Whom to ask

    def ask(self, drafter: str, paid: bool, rounds: Sequence[Round]) -> list[bool]:
        """For which sequences the drafter should draft this round, given what is in the rounds' trees already."""
        owns = [self._own[drafter, round.sequence] for round in rounds]
        for own, round in zip(owns, rounds, strict=True):
            own.rounds += self._steps
            own.on, own.why = round.wished
        open_ones = [at for at, round in enumerate(rounds) if round.wish.mode == "auto" and round.wish.nodes]
        if self.rule == "auto" and self.measured and (not paid or self.costs.one_pass(drafter, len(rounds)) is not None):
            asked, asked_owns = [rounds[at] for at in open_ones], [owns[at] for at in open_ones]
            if paid:
                offered = self._offered(rounds)
                whole = sum(offered, Offer(float(len(self.costs.shapes))))
                self._ask_together(drafter, asked, asked_owns, [offered[at] for at in open_ones], whole)
            else:
                self._ask_each(drafter, asked, asked_owns)
        elif self.rule != "auto":
            for at in open_ones:
                owns[at].on, owns[at].why = self._by_rule(drafter, paid, rounds[at], len(rounds))
        for own in owns:
            own.asked += own.on
            self.tallies[drafter].decided(own.on, own.why)
        return [own.on for own in owns]

    def _ask_each(self, drafter: str, rounds: list[Round], owns: list[Own]) -> None:
        """A free drafter: each sequence for itself."""
        for round, own in zip(rounds, owns, strict=True):
            standing = self._opened(drafter, round, paid=False)
            if not own.begun:
                own.on, own.why = self._begin(round, own, standing)
            elif own.balance > 0.0:
                own.on, own.why = True, "it has not cost more here than it may"
            else:
                own.probe(standing, own.probe_due(self._steps), "it has cost more than it brought here", self.costs.unit)

    def _ask_together(self, drafter: str, rounds: list[Round], owns: list[Own], offered: list[Offer], whole: Offer) -> None:
        """A drafter whose levels are passes that all share: decided for all at once. ``offered``: what each has without it;
        ``whole``: what the step makes."""
        standings = [self._opened(drafter, round, paid=True) for round in rounds]
        for own, round, standing in zip(owns, rounds, standings, strict=True):
            if not own.begun:
                price = self.costs.reading(drafter, round.to_read(drafter)) + self._allowance(round, standing)
                own.look_forward(standing, price, self._left(round) * self.costs.unit, round.kind)
        acceptances = [own.acceptance(standing) for own, standing in zip(owns, standings, strict=True)]
        ready = [
            at for at, own in enumerate(owns) if (own.balance > 0.0 if own.begun else self._may_begin(rounds[at], standings[at]))
        ]
        ready.sort(key=lambda at: -acceptances[at])
        asked = [rounds[at] for at in ready], [acceptances[at] for at in ready], [offered[at] for at in ready]
        count, depth, gain = self._planned[drafter] = self._best_group(drafter, *asked, whole) if ready else (0, 0, 1.0)
        for at in ready[:count]:
            own, round = owns[at], rounds[at]
            own.on, own.why = True, f"its guesses are expected to be right {acceptances[at]:.2f} of the time, best {depth} deep"
            if not own.begun:
                reading = self.costs.reading(drafter, round.to_read(drafter))
                own.on, own.why = self._begin(round, own, standings[at], reading, gain)
        self._look_again(drafter, rounds, owns, standings, [at for at in range(len(owns)) if at not in ready[:count]])

    def _look_again(
        self, drafter: str, rounds: list[Round], owns: list[Own], standings: list[Standing], waiting: list[int]
    ) -> None:
        """Probe those ``waiting`` ones for which it is time; where nobody else asks, half of the time will do: a pass is cheaper
        shared."""
        due = {at for at in waiting if owns[at].probe_due(self._steps)}
        if due and len(waiting) == len(owns):
            due = {at for at in waiting if 2 * owns[at].off >= owns[at].interval}
        for at in waiting:
            own, standing = owns[at], standings[at]
            reading = 0.0 if own.begun else self.costs.reading(drafter, rounds[at].to_read(drafter))
            # Credit is earned over all requests, but reading is lost on this one.
            if reading > 0.0 and reading > min(standing.free, self._allowance(rounds[at], standing)):
                own.on, own.why = False, f"reading the text takes {reading:.2f} s, more than a try is worth"
                continue
            lost = own.begun and own.balance <= 0.0
            expected = f"expected to be right {own.acceptance(standing):.2f} of the time it does not pay"
            why = "it has cost more than it brought here" if lost else expected
            own.probe(standing, at in due, why, self.costs.unit)
            if own.on and not own.begun:
                own.begun, own.allowance = True, self._allowance(rounds[at], standing)

    def _offered(self, rounds: Sequence[Round]) -> list[Offer]:
        """What the sequences' guesses so far bring in a step without more."""
        ranked = likeliest_first([self.survivals(round.tree, round.kind) for round in rounds], LEAST_SURVIVAL)
        return offers(ranked, self._company_of(rounds), self.costs.curve, self.costs.overhead)[: len(rounds)]

    def _company_of(self, rounds: Sequence[Round]) -> list[int]:
        """Contexts of the rounds, and of whoever waits for their step while its prompt is read."""
        return [*(round.context for round in rounds), *self.costs.joining]

    def _best_group(
        self, drafter: str, rounds: list[Round], acceptances: list[float], offered: list[Offer], whole: Offer
    ) -> tuple[int, int, float]:
        costs, deepest = self.costs, min(DEEPEST_ASKED, max(round.tokens_left for round in rounds))
        passes, sequences = partial(costs.passes, drafter), len(costs.shapes)
        breadth = fmean(self.standing(drafter, round.kind).breadth.value or 1.0 for round in rounds)
        return rules.best_group(acceptances, offered, whole, sequences, costs.plain, passes, costs.rows, max(1, deepest), breadth)

    def _opened(self, drafter: str, round: Round, paid: bool) -> Standing:
        """The drafter's standing, which begins with credit."""
        standing = self.standing(drafter, round.kind)
        standing.paid = paid
        standing.prior = accounts.prior(round.kind)
        if standing.balance is None:
            standing.start = accounts.start_steps(paid, round.kind, max(1, len(self.costs.shapes)))
            standing.book(0.0, self.costs.unit)
        return standing

    def _may_begin(self, round: Round, standing: Standing) -> bool:
        free = standing.free - standing.owed
        return free > 0.0 and free >= self._allowance(round, standing) / 4

    def _allowance(self, round: Round, standing: Standing) -> float:
        """Seconds that a drafter may lose on a request before it must have brought something."""
        return self.costs.unit * min(4.0, max(0.5, (0.03 if standing.proven else 0.015) * self._left(round)))

    def _left(self, round: Round) -> float:
        """Tokens that are still expected."""
        return self.lengths.left(round.generated, round.tokens_left)

    def _begin(self, round: Round, own: Own, standing: Standing, reading: float = 0.0, gain: float = 1.0) -> tuple[bool, str]:
        """Whether a drafter may start with a request: it must be in credit, and what it reads first must come back."""
        if not self._may_begin(round, standing):
            return False, IN_THE_RED
        allowance = self._allowance(round, standing)
        if reading > 0.0 and (why := why_not_read(self.lengths, round, own.rounds, self.costs.unit, reading, allowance, gain)):
            return False, why
        own.begun, own.balance, own.allowance = True, allowance, allowance
        own.reserve(reading + allowance, standing)
        return True, "it begins"

    def _by_rule(self, drafter: str, paid: bool, round: Round, askers: int) -> tuple[bool, str]:
        known = self.costs.one_pass(drafter, askers) is not None and self.measured
        if self.rule == "goodput" and paid and known:
            depth = self._best_depth(drafter, round, askers)
            return depth > 0, f"goodput is best {depth} deep"
        return True, f"the setting {self.rule} always drafts"

    def _best_depth(self, drafter: str, round: Round, askers: int) -> int:
        """Levels that make most tokens a second of this sequence's share of the step."""
        seconds = partial(self.costs.share_of_round, drafter, askers, round.context)
        acceptance = self.standing(drafter, round.kind).acceptance
        return rules.best_depth(acceptance, seconds, min(DEEPEST_ASKED, max(1, round.tokens_left)))

    # How deep

    def limits(self, drafter: str, paid: bool, round: Round, askers: int) -> tuple[int, float, float]:
        """Most levels, least survival of a chain that is drafted further, and most entropy (nats) of a level. ``askers`` sequences
        share the drafter's passes."""
        free = float("inf")
        if self.rule == "fixed":
            return self.depth, 0.0, free
        if not paid:
            return rules.DEEPEST, 0.0, free
        known = self.costs.one_pass(drafter, askers) is not None and self.measured
        if self.rule != "auto":
            best = self._best_depth(drafter, round, askers) if known and self.rule == "goodput" else 1
            return chains.limits(self.rule, best, self.entropy.threshold)
        own = self._own[drafter, round.sequence]
        members, planned, _ = self._planned.get(drafter, (0, 0, 1.0))
        deepest = max(1, min(PROBE_DEPTH, planned)) if own.probing else rules.DEEPEST
        if not known:
            return (PROBE_DEPTH if self.measured else deepest), 0.3, free
        # A token is worth what it takes to make one: the step's seconds over its tokens at the present gain.
        worth = self.costs.unit / max(1.0, self._gain.value or 1.0)
        row = self.costs.row(round.context, members * planned)
        if members > 1 and not own.probing:  # a level is paid for all of them: who stops early saves his row only
            return planned, min(0.95, row / worth), free
        acceptance = own.acceptance(self.standing(drafter, round.kind))
        deeper = self.costs.deeper(drafter, askers) / askers
        return deepest, min(0.95, (deeper + row) / (worth * max(acceptance, 0.1))), free

    def floors(self, round: Round, most: int) -> list[float]:
        """What each next one of at most so many nodes that cost nothing must survive with to be worth proposing."""
        if self.rule != "auto" or not self.measured or round.wish.mode == "on":
            return []
        return self.costs.floors(most)

    def calibrated(self, drafter: str, kind: str) -> Callable[[float], float]:
        """P(accepted | parent accepted) by raw score, for drafters that stop by it."""
        return partial(self.calibrator.probability, drafter, kind=kind)

    # Which nodes

    def survivals(self, tree: DraftTree, kind: str = ALL) -> list[float]:
        """Calibrated P(accepted) of each node. Siblings exclude each other, so theirs never add up to more than their parent's."""
        conditional = [self.calibrator.probability(d, s, kind) for d, s in zip(tree.drafters, tree.scores, strict=True)]
        return survivals(tree, conditional)

    def select(self, rounds: Sequence[Round], rows: int, drafting_seconds: float, room: int, each: int) -> list[DraftTree]:
        """Keep the nodes worth verifying, at most ``room`` of all of them and ``each`` of one tree. ``rows`` is what the step
        computes anyway."""
        contexts, costs = self._company_of(rounds), self.costs
        how_many = fairest_count if self.rule == "auto" else best_count

        def best(ranked: Ranked) -> int:
            seconds = seconds_by_count(ranked, contexts, rows, drafting_seconds, costs.curve, costs.overhead)
            return how_many(ranked, len(contexts), seconds)

        if self.rule != "auto":
            deepest = min(self.depth or rules.DEEPEST, room // max(1, len(rounds)))
            return chains.keep_chains(self.rule, rounds, deepest, self.survivals, best if self.measured else None)
        least = LEAST_SURVIVAL if self.measured else 0.0
        ranked = likeliest_first([self.survivals(round.tree, round.kind) for round in rounds], least)
        most = min(room, self.most_nodes * max(1, len(rounds)))
        keep = best(ranked[:most]) if self.measured else min(len(ranked), most)
        kept: list[set[int]] = [set() for _ in rounds]
        for place, (_, index, node) in enumerate(ranked):
            wanted = place < keep or rounds[index].wish.mode == "on"
            if wanted and room > 0 and len(kept[index]) < min(each, rounds[index].wish.nodes):
                kept[index].add(node)
                room -= 1
        return [round.keep(nodes) for round, nodes in zip(rounds, kept, strict=True)]

    # What became of it

    def observe(self, round: Round, accepted: list[int]) -> None:
        """Learn which verified nodes were accepted."""
        round.accepted = accepted
        self.calibrator.observe_tree(round.verified, set(accepted), round.kind)
        brought = round.brought()
        for drafter, levels in round.levels.items():
            verified = round.verified_levels(drafter, levels)
            if verified:
                standing = self.standing(drafter, round.kind)
                standing.evidence.observe(len(accepted), verified, accounts.STANDING_FORGETTING)
                standing.breadth.observe(round.verified_origins.count(drafter) / verified)
                own = self._own[drafter, round.sequence]
                own.evidence.observe(len(accepted), verified, accounts.OWN_FORGETTING)
                if self.rule == "entropy":
                    self.entropy.observe(min(len(accepted), verified), verified)
        for drafter in {*round.origins}:
            proposed, verified = round.origins.count(drafter), round.verified_origins.count(drafter)
            self.tallies[drafter].count(proposed, verified, brought.get(drafter, 0))

    def settle(self, rounds: Sequence[Round], rows: int, forward: float, whole: float, drafters: Sequence[str], pure: bool) -> None:
        """A step is over: it took ``whole`` seconds, ``forward`` of them in the pass over ``rows`` rows. Teach the cost curve and
        book gains and losses. ``pure``: nothing but the rounds' sequences was computed."""
        asked = sum(sum(round.seconds.values()) for round in rounds)
        plainly, asked = whole - asked, self._usual.counted(asked, rounds, self.costs)
        shapes = [(1 + len(round.verified), round.context) for round in rounds]
        if pure and shapes:
            self.costs.learn(shapes, rows, forward, plainly)
        if not self.measured or not rounds or self.costs.plain <= 0.0:
            return
        self.upkeep.earn(self._steps * self.costs.plain, self.costs.unit)
        nodes = sum(len(round.verified) for round in rounds)
        extra = self.costs.verifying(shapes, rows, nodes, plainly if pure else None)
        row_seconds, share = extra / nodes if nodes else 0.0, 1.0 / max(1, len(drafters))
        nets = [round.nets(self.costs.unit, row_seconds) for round in rounds]
        saved = sum(sum(net.values()) for round, net in zip(rounds, nets, strict=True) if self._chose(round))
        passed_on = share * self._savings.passed_on(saved) / len(rounds)
        for round, net in zip(rounds, nets, strict=True):
            earned = share * accounts.exploration(round.kind, len(rounds)) * self.costs.unit
            self._book(round, net, drafters, earned, passed_on)
        brought = sum(len(round.accepted) for round in rounds)
        if nodes or asked:
            if all(map(self._chose, rounds)):
                self._gain.observe((len(self.costs.shapes) + brought) * self.costs.unit / (self.costs.plain + asked + extra))
        else:
            self._gain.observe(1.0)
            if pure:
                self.costs.refer(whole)

    def _chose(self, round: Round) -> bool:
        """Whether what is drafted in this round is up to the accounts. What somebody insists on must not decide for others."""
        return self.rule == "auto" and round.wish.mode != "on"

    def _book(self, round: Round, nets: dict[str, float], drafters: Sequence[str], earned: float, passed_on: float) -> None:
        for drafter in drafters:
            own = self._own.get((drafter, round.sequence))
            standing = self.standing(drafter, round.kind)
            net = nets.get(drafter)
            if net is None:
                if self.rule == "auto":
                    standing.book(self._steps * earned + passed_on, self.costs.unit)
                if own is not None and own.begun:
                    own.balance = min(own.balance + self._steps * earned, own.allowance)
                continue
            reading = round.catching_up.get(drafter, 0.0)
            if self._chose(round):
                booked = net if own is None else own.pay_back(net, reading)
                standing.book(booked + earned, self.costs.unit)
                self.upkeep.gain(drafter, net, self.costs.unit)
            self.tallies[drafter].took(round.seconds[drafter], net)
            if own is not None:
                own.release()
                tried = drafter in round.verified_origins or drafter in round.levels
                own.settle(net + reading, tried)

    # Requests

    def standing(self, drafter: str, kind: str) -> Standing:
        """The drafter's standing in a step like the present one: what pays for a sequence alone may not where many share a step."""
        return self.standings[drafter, kind + self._company]

    def own(self, drafter: str, sequence: int) -> Own | None:
        """The account of a drafter on a sequence, None where it takes no part in it."""
        return self._own.get((drafter, sequence))

    def keeps(self, drafter: str, wish: SpeculationParams) -> bool:
        """Whether the drafter may take part in a request of that ``wish``: not where its upkeep was more than it is worth."""
        return self.rule != "auto" or wish.mode == "on" or self.upkeep.pays(drafter)

    def keep_up(self, drafter: str, sequence: int, wish: SpeculationParams, call: str, seconds: float) -> None:
        """Outside of the rounds that it was asked in the drafter took that long for a request, in its method ``call``."""
        self.tallies[drafter].took(seconds, -seconds)
        self._own[drafter, sequence].saved -= seconds
        if self.rule == "auto" and wish.mode == "auto" and self.measured:
            self.upkeep.charge(drafter, call, seconds, self.costs.unit or self.costs.plain_seconds(1))

    def finish(self, sequence: int, length: int, complete: bool) -> None:
        """A sequence is over after ``length`` tokens; an answer that was cut short says nothing about how long answers are."""
        if complete:
            self.lengths.observe(float(length))
        for key in [key for key in self._own if key[1] == sequence]:
            self._own.pop(key).close(self.costs.unit)

    def explain(self, drafter: str, sequence: int | None = None) -> str:
        """One line: whether the drafter is on, why, and what it has brought; of one request, or of the engine so far."""
        own = None if sequence is None else self.own(drafter, sequence)
        return f"{drafter}: {own or self.tallies.get(drafter, Tally())}"
