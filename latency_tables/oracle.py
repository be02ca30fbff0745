"""What a network costs on a device: looked up, measured, or predicted — never guessed.

An :class:`Oracle` answers in the order asked. For each network it tries, in this order: what it
answered before, the table, a live measurement while the budget of measurements lasts, the latency
model. Where nothing is left it raises :class:`MissingLatencyError` and names the command that
measures. Every finished measurement is stored before anybody is told of it.

A board's fault never punishes a candidate: a network whose measurement failed is answered by the
model, and :attr:`Oracle.notes` says so.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from latency_tables.arch import Arch
from latency_tables.errors import (
    Blames,
    CorruptTableError,
    DeviceError,
    HilnasError,
    MissingLatencyError,
    ProtocolError,
    UsageError,
)
from latency_tables.estimate import Estimate
from latency_tables.fields import Fields
from latency_tables.keys import measurement_key, setting_text
from latency_tables.pooling import pool
from latency_tables.records import Measurement

if TYPE_CHECKING:
    from latency_tables.predictor import LatencyModel
    from latency_tables.store import TableStore
    from latency_tables.weights_spec import WeightsSpec

SCHEMA = 1
MAX_ATTEMPTS = 2
"""How often a network is sent to the device before the model answers for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureJob:
    """One network to be timed.

    ``onnx`` is the model without its large weights, ``weights`` says how to synthesise those where
    the network is timed (None: everything is inline). ``space_id`` is copied into the record.
    """

    net_id: str
    arch: Arch | None
    onnx: bytes
    weights: WeightsSpec | None = None
    space_id: str = ""


class Measurer(Protocol):
    """Times networks on one device."""

    def measure(self, jobs: Sequence[MeasureJob]) -> list[Measurement]:
        """Time ``jobs`` and give one record per job in the order asked.

        A job that failed gives a record with ``error``; raising is for faults that concern all.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """Where and how networks run: everything of a latency's key but the network."""

    device_name: str
    device_fp: str
    runtime: dict[str, Any]
    threads: int
    cores: tuple[int, ...] = ()

    def key(self, net_id: str) -> str:
        """Key of a network's latency in this deployment."""
        return measurement_key(
            net_id=net_id,
            runtime=self.runtime,
            threads=self.threads,
            cores=self.cores,
            device_fp=self.device_fp,
        )

    @property
    def setting(self) -> str:
        """Runtime, threads and cores as the store keeps them."""
        return setting_text(runtime=self.runtime, threads=self.threads, cores=self.cores)

    @classmethod
    def of(cls, measurement: Measurement) -> Deployment:
        """The deployment that a measurement was made in."""
        return cls(
            device_name=measurement.device_name,
            device_fp=measurement.device_fp,
            runtime=measurement.runtime,
            threads=measurement.threads,
            cores=measurement.cores,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """A question that :meth:`Oracle.collect` answers."""

    number: int
    archs: tuple[Arch, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """A measurement that did not give a latency, so that the model had to answer."""

    net_id: str
    arch: Arch | None
    code: str
    message: str
    blames: Blames


class Oracle:
    """Latencies of one space in one deployment.

    Args:
        store: where latencies are looked up and measurements are kept.
        deployment: device, runtime, threads and cores that all answers are for.
        identify: the net_id of an architecture (:func:`latency_tables.keys.net_id`); must be cheap.
        make_job: the network to send; called only for networks that are measured.
        measurer: times networks; None where there is no device.
        model: answers what is neither in the table nor measured; may be replaced at any time.
        budget: number of measurements that :meth:`collect` may spend.
        replay: measurements of an interrupted run that happened after the state that
            :meth:`load_state_dict` restores. Each answers, once, for the measurement that this run
            would make, so that the run goes on as if it had not been interrupted.
        on_measured: called with each measurement after it was stored (to journal it).
    """

    def __init__(
        self,
        store: TableStore,
        deployment: Deployment,
        *,
        identify: Callable[[Arch], str],
        make_job: Callable[[Arch], MeasureJob] | None = None,
        measurer: Measurer | None = None,
        model: LatencyModel | None = None,
        budget: int = 0,
        replay: Iterable[Measurement] = (),
        on_measured: Callable[[Measurement], None] | None = None,
    ) -> None:
        if measurer is not None and make_job is None:
            raise UsageError("a measurer needs make_job: what should it measure?")
        self.model, self.budget, self.spent = model, budget, 0
        self.notes: list[Note] = []
        self._store, self._deployment = store, deployment
        self._identify, self._make_job = identify, make_job
        self._measurer, self._on_measured = measurer, on_measured
        self._answers: dict[str, Estimate] = {}
        self._attempts: Counter[str] = Counter()
        self._replay: defaultdict[str, deque[Measurement]] = defaultdict(deque)
        for measurement in replay:
            self._replay[measurement.net_id].append(measurement)
        self._tickets: dict[int, Ticket] = {}
        self._n_tickets = 0

    # --- asking

    def submit(self, archs: Sequence[Arch]) -> Ticket:
        """Hand in a question; :meth:`collect` answers it, once."""
        ticket = Ticket(number=self._n_tickets, archs=tuple(archs))
        self._n_tickets += 1
        self._tickets[ticket.number] = ticket
        return ticket

    def collect(self, ticket: Ticket) -> list[Estimate]:
        """One Estimate per architecture of the ticket, in its order.

        Raises MissingLatencyError where a network is neither in the table nor measured and there
        is no model; DeviceError where the device failed and there is no model, or where trying
        again cannot help; UsageError for a ticket that was collected before or is not of this
        oracle.
        """
        if self._tickets.get(ticket.number) is not ticket:
            raise UsageError(f"ticket {ticket.number} was collected before or is of another oracle")
        nets = {arch: self._identify(arch) for arch in ticket.archs}
        by_net = {net: arch for arch, net in reversed(nets.items())}
        asked = [net for net in dict.fromkeys(nets.values()) if net not in self._answers]
        self._look_up(net for net in asked if not self._replay.get(net))
        chosen = self._affordable(asked)
        fault = self._measure_chosen([by_net[net] for net in chosen], chosen) if chosen else None
        answers = {net: self._answers[net] for net in nets.values() if net in self._answers}
        rest = [net for net in asked if net not in answers]
        if rest and self.model is None:
            raise fault or self._missing(by_net[rest[0]], rest[0], len(rest))
        if rest and self.model is not None:
            predicted = self.model.predict([by_net[net] for net in rest])
            answers.update(zip(rest, predicted, strict=True))
        del self._tickets[ticket.number]
        return [answers[nets[arch]] for arch in ticket.archs]

    def measure(self, archs: Sequence[Arch]) -> list[Measurement]:
        """Measure now, whatever the table says and outside of the budget.

        For the front before a winner is named. One record per architecture, stored, failed ones
        included. Raises MissingLatencyError without a device, DeviceError where it fails as such.
        """
        return self._run([(arch, self._identify(arch)) for arch in archs])

    # --- keeping

    def state_dict(self) -> dict[str, Any]:
        """What makes later answers equal: a JSON-ready dictionary."""
        return {
            "schema": SCHEMA,
            "spent": self.spent,
            "attempts": dict(self._attempts),
            "answers": {net: answer.to_dict() for net, answer in self._answers.items()},
            "notes": [
                {**asdict(note), "arch": None if note.arch is None else dict(note.arch)}
                for note in self.notes
            ],
        }

    def load_state_dict(self, state: object) -> None:
        """Go on where :meth:`state_dict` was taken. Raises CorruptTableError naming the field."""
        fields = Fields(state, "oracle state")
        fields.schema(SCHEMA)
        spent = fields.integer("spent")
        attempts, answers = fields.take("attempts"), fields.take("answers")
        notes = fields.items("notes")
        fields.end()
        try:
            self._attempts = Counter({net: int(count) for net, count in attempts.items()})
            self._answers = {net: Estimate.from_dict(answer) for net, answer in answers.items()}
            self.notes = [_note_from(note) for note in notes]
        except (AttributeError, KeyError, TypeError, ValueError, HilnasError) as error:
            raise CorruptTableError(f"oracle state: {error}") from None
        self.spent = spent

    # --- inside

    def _look_up(self, nets: Iterable[str]) -> None:
        keys = {self._deployment.key(net): net for net in nets}
        for key, estimate in self._store.pooled_all(list(keys)).items():
            self._answers[keys[key]] = estimate

    def _affordable(self, asked: Sequence[str]) -> list[str]:
        """Networks to measure now: in the order asked, while budget and attempts last."""
        open_nets = [
            net
            for net in asked
            if net not in self._answers
            and self._attempts[net] < MAX_ATTEMPTS
            and (self._measurer is not None or self._replay.get(net))
        ]
        return open_nets[: max(0, self.budget - self.spent)]

    def _measure_chosen(self, archs: Sequence[Arch], nets: Sequence[str]) -> DeviceError | None:
        try:
            measurements = self._run(list(zip(archs, nets, strict=True)))
        except DeviceError as error:
            if not error.retryable:  # predicting everything from now on would hide it
                raise
            for arch, net in zip(archs, nets, strict=True):
                self._note(net, arch, error.code, error.message, error.blames)
            return error
        for arch, net, measurement in zip(archs, nets, measurements, strict=True):
            self.spent += 1
            self._attempts[net] += 1
            if measurement.ok:
                self._answers[net] = pool([measurement], source="measured")
                continue
            failure = measurement.error
            if failure is not None:
                self._note(net, arch, failure["code"], failure["message"], failure["blames"])
            else:
                code = next((v.code for v in measurement.verdicts if v.severity == "fail"), "VOID")
                self._note(net, arch, code, measurement.why_not(), "board")
        return None

    def _run(self, wanted: Sequence[tuple[Arch, str]]) -> list[Measurement]:
        """Measure, or replay what an interrupted run measured; all is stored on return."""
        replayed = [
            self._replay[net].popleft() if self._replay.get(net) else None for _, net in wanted
        ]
        fresh = [pair for pair, old in zip(wanted, replayed, strict=True) if old is None]
        if fresh and (self._measurer is None or self._make_job is None):
            raise self._missing(*fresh[0], len(fresh))
        live: list[Measurement] = []
        if fresh and self._measurer is not None and self._make_job is not None:
            live = self._measurer.measure([self._make_job(arch) for arch, _ in fresh])
            _check_order(fresh, live)
            self._store.add_all(live)
            for measurement in live:
                if self._on_measured is not None:
                    self._on_measured(measurement)
            self._check_deployment(live)
        self._store.add_all(old for old in replayed if old is not None)
        following = iter(live)
        return [old if old is not None else next(following) for old in replayed]

    def _check_deployment(self, measurements: Sequence[Measurement]) -> None:
        for measurement in measurements:
            if measurement.ok and measurement.key != self._deployment.key(measurement.net_id):
                raise ProtocolError(
                    f"network {measurement.net_id[:12]} was measured in another deployment: device "
                    f"{measurement.device_fp[:12]}, {Deployment.of(measurement).setting}; asked "
                    f"for {self._deployment.device_fp[:12]}, {self._deployment.setting}",
                    hint=f"hilnas devices probe {self._deployment.device_name}",
                )

    def _note(self, net: str, arch: Arch, code: str, message: str, blames: Blames) -> None:
        self.notes.append(Note(net_id=net, arch=arch, code=code, message=message, blames=blames))

    def _missing(self, arch: Arch, net: str, count: int) -> MissingLatencyError:
        more = f" and {count - 1} others" if count > 1 else ""
        failed = next((n for n in reversed(self.notes) if n.net_id == net), None)
        because = f"; measuring it failed with {failed.code}: {failed.message}" if failed else ""
        return MissingLatencyError(
            f"no latency of {arch.to_json()}{more} on {self._deployment.device_name!r}: not in "
            f"{self._store.path}, {self.spent} of {self.budget} measurements spent, no latency "
            f"model{because}",
            hint="hilnas tables build FILE",
        )


def _check_order(asked: Sequence[tuple[Arch, str]], got: Sequence[Measurement]) -> None:
    """A wrong or shifted answer would give a candidate another one's latency."""
    if [net for _, net in asked] != [measurement.net_id for measurement in got]:
        raise ProtocolError(
            f"asked for {len(asked)} networks, the measurer answered {len(got)} times or in "
            "another order"
        )


def _note_from(data: dict[str, Any]) -> Note:
    arch = None if data["arch"] is None else Arch.from_dict(data["arch"])
    return Note(**{**data, "arch": arch})
