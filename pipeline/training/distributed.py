"""Several processes that train one supernet: the ranks.

``torchrun`` starts them; each holds all weights and computes with a part of every batch. They meet
once per update, after *all* its losses were differentiated: the gradients that exist on any rank
are laid end to end in one buffer together with the losses, and one all-reduce makes their means.

Why not torch's ``DistributedDataParallel``: an update may hold many losses of different subnets,
each of them leaves other parameters without a gradient, and some strategies hand over ready
gradients. DDP would need ``find_unused_parameters`` (a walk over the graph per loss), ``no_sync``
around all losses but the last, and even then reduce the parameters that only earlier losses used
in a way that depends on the last one. One reduction after the last loss is what ``no_sync`` is
for, without its pitfalls. The price: the reduction does not overlap with the backward pass.

Scale: the gradient is the *mean* over the ranks. Where all train the same path, each on its part
of the images, that is the gradient of the whole batch. Where each trains a path of its own, every
path weighs 1/world. A parameter that got a gradient on no rank has none afterwards either, so
neither momentum nor decay moves it; one that got a gradient on any rank moves alike on all.

Before anything is reduced the ranks compare, in one small message on the host, what they are about
to do and which parameters have gradients; so a strategy that goes different ways on different
ranks ends with a message instead of a deadlock. With CUDA the messages go through gloo and the
gradients through NCCL, so no rank waits for its GPU.

A rank that fails leaves a note in the store that all of them reach and closes its connections; the
others wait in slices of ``POLL``, find the note and stop. A rank that is killed closes its
connections too. A rank that hangs is given up after the time limit.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store

from latency_tables.errors import HilnasError, TrainingError, UsageError
from pipeline.training.ranks import Ranks

POLL = timedelta(seconds=1)
TIME_LIMIT = timedelta(minutes=30)
"""How long a rank waits for another one that neither answers nor is gone."""
LISTEN_S = 0.1
"""Time between two looks into the store."""
PATIENCE_S = 30.0
"""How long a failed rank waits for rank 0 to say so, before it says so itself."""

logger = logging.getLogger(__name__)

_FAILURE, _SPOKE = "failure", "spoke"


@dataclass(frozen=True, slots=True)
class BatchPart:
    """The images and labels of one rank."""

    images: Tensor
    labels: Tensor


class JoinedRanks(Ranks):
    """One of several processes, connected to all others.

    Args:
        store: reached by all; :func:`join` makes it from torchrun's settings.
        rank: 0 ... world - 1.
        local_rank: number of the process on its machine, and of its GPU.
        cuda: gradients live on GPUs.
    """

    def __init__(
        self,
        store: Store,
        *,
        rank: int,
        world: int,
        local_rank: int = 0,
        cuda: bool = False,
        time_limit: timedelta = TIME_LIMIT,
    ) -> None:
        self.rank, self.world, self.local_rank = rank, world, local_rank
        self._store = PrefixStore("hilnas", store)
        self._time_limit = time_limit
        self._said = 0
        self._asked = self._stop = False
        self._failed = self._closed = False
        if cuda:
            torch.cuda.set_device(local_rank)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            store=store,
            rank=rank,
            world_size=world,
            timeout=time_limit,
        )

    # -- training --------------------------------------------------------------------------

    def part(self, batch: Any) -> BatchPart:
        """The images rank · n/world ... of a batch of n."""
        n_images = len(batch.images)
        if n_images % self.world:
            fits = max(self.world, n_images - n_images % self.world)
            raise UsageError(
                f"a batch of {n_images} images cannot be shared equally by {self.world} processes",
                hint=f"--set train.batch_size={fits}",
            )
        size = n_images // self.world
        mine = slice(self.rank * size, (self.rank + 1) * size)
        return BatchPart(images=batch.images[mine], labels=batch.labels[mine])

    def reduce(
        self, parameters: Mapping[str, nn.Parameter], losses: Sequence[Tensor], *, what: str
    ) -> list[Tensor]:
        """One all-reduce for all gradients and losses (one per number format, if they differ)."""
        ordered = list(parameters.values())
        present = torch.tensor([p.grad is not None for p in ordered], dtype=torch.uint8)
        if not self._meet(f"{what}, {len(losses)} losses", present.numpy().tobytes()):
            self._collect(present, dist.ReduceOp.MAX)  # own paths: the union of all
        used = [p for p, is_used in zip(ordered, present.tolist(), strict=True) if is_used]
        for parameter in used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        means = [loss.detach().clone() for loss in losses]
        self._average([*(p.grad for p in used if p.grad is not None), *means])
        return means

    def _average(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their means over the ranks."""
        buckets: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            buckets.setdefault(tensor.dtype, []).append(tensor)
        for members in buckets.values():
            flat = torch.cat([t.reshape(-1) for t in members])
            self._collect(flat, dist.ReduceOp.SUM)
            flat.div_(self.world)
            means = torch.split(flat, [t.numel() for t in members])
            for tensor, mean in zip(members, means, strict=True):
                tensor.copy_(mean.view(tensor.shape))

    def mean(self, values: Tensor) -> Tensor:
        """One small all-reduce."""
        self._meet(f"mean of {tuple(values.shape)}")
        means = values.detach().clone()
        self._collect(means, dist.ReduceOp.SUM)
        return means.div_(self.world)

    def spread(self, functions: Sequence[Callable[[], Tensor]], device: torch.device) -> Tensor:
        """Every world-th function here, zeros for the others, then one small all-reduce."""
        values = torch.zeros(len(functions), dtype=torch.float64, device=device)
        self.apart = True
        try:
            for index in range(self.rank, len(functions), self.world):
                values[index] = functions[index]()
        finally:
            self.apart = False
        self._meet(f"{len(functions)} values from one rank each")
        self._collect(values, dist.ReduceOp.SUM)
        return values

    def stacked(self, values: Tensor) -> Tensor:
        """One all-gather, without a message before it: batch norms call this in every layer."""
        own = values.detach().contiguous()
        parts = [torch.empty_like(own) for _ in range(self.world)]
        if own.is_cuda:
            dist.all_gather(parts, own)
        else:
            self._wait(dist.all_gather(parts, own, async_op=True))
        return torch.stack(parts)

    def gather(self, value: Any) -> list[Any]:
        """Texts of different lengths, padded to the longest."""
        self._meet("gathering values")
        data = json.dumps(value).encode()
        sizes = self.stacked(torch.tensor([len(data)])).flatten().tolist()
        padded = torch.zeros(max(sizes), dtype=torch.uint8)
        padded[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        rows = zip(self.stacked(padded), sizes, strict=True)
        return [json.loads(row[:size].numpy().tobytes()) for row, size in rows]

    def first(self, data: bytes | None) -> bytes | None:
        """Length first (-1 is None), then the bytes."""
        self._meet("hearing rank 0")
        size = torch.tensor([-1 if data is None else len(data)])
        self._wait(dist.broadcast(size, 0, async_op=True))
        n_bytes = int(size)
        if n_bytes <= 0:
            return None if n_bytes < 0 else b""
        content = torch.empty(n_bytes, dtype=torch.uint8)
        if self.leads and data is not None:
            content = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        self._wait(dist.broadcast(content, 0, async_op=True))
        return content.numpy().tobytes()

    def compare(self, parameters: Iterable[Tensor]) -> None:
        """By hash. Processors of different kinds may round differently."""
        digest = hashlib.sha256()
        for parameter in parameters:
            digest.update(parameter.detach().cpu().contiguous().numpy().tobytes())
        if not self._meet("the end of training", digest.digest()) and self.leads:
            logger.warning(
                "the weights of the ranks differ in their last bits; rank 0 has written its"
            )

    def stop(self, asked: bool) -> bool:
        """What this rank is asked travels with its next message, so all stop after one step."""
        self._asked = self._asked or asked
        return self._stop

    # -- what is not training --------------------------------------------------------------

    def say(self, text: str) -> None:
        """A numbered entry in the store."""
        self._store.set(f"said/{self._said}", text)
        self._said += 1

    def hear(self) -> str:
        """Wait without limit: what rank 0 does before training may take hours."""
        key = f"said/{self._said}"
        try:
            while not self._store.check([key]):
                self._look_for_failure()
                time.sleep(LISTEN_S)  # a wait of the store itself complains at each time limit
            text = self._store.get(key)
        except RuntimeError as error:
            raise self._lost("the store that all share is gone") from error
        self._said += 1
        return text.decode()

    def fail(self, error: BaseException) -> None:
        """Leave a note and close the connections; the first note of all is the one that counts."""
        if self._failed:
            return
        self._failed = True
        note = {
            "rank": self.rank,
            "message": error.message if isinstance(error, HilnasError) else repr(error),
            "hint": error.hint if isinstance(error, HilnasError) else None,
        }
        # the store may be gone with rank 0, and then nobody is left to tell
        with suppress(RuntimeError):
            self._store.compare_set(_FAILURE, "", json.dumps(note))
        self.close()

    def speaks(self) -> bool:
        """Give rank 0 some time to hear of the failure: torchrun ends it when this one ends."""
        if self.leads:
            return True
        deadline = time.monotonic() + PATIENCE_S
        with suppress(RuntimeError):
            while time.monotonic() < deadline:
                if self._store.check([_SPOKE]):
                    return False
                time.sleep(LISTEN_S)
        return True

    def spoke(self) -> None:
        """An entry in the store."""
        with suppress(RuntimeError):
            self._store.set(_SPOKE, "")

    def close(self) -> None:
        """Close all connections; somebody who still waits for this rank hears of it at once."""
        if not self._closed:
            self._closed = True
            dist.destroy_process_group()

    # -- messages --------------------------------------------------------------------------

    def _meet(self, what: str, content: bytes = b"") -> bool:
        """Compare with all ranks what comes next; whether ``content`` is the same on all.

        Raises:
            TrainingError: the ranks are at different places, or one of them is gone.
        """
        place, digest = zlib.crc32(what.encode()), _digest(content)
        message = torch.tensor([place, -place, digest, -digest, int(self._asked)])
        self._collect(message, dist.ReduceOp.MAX)
        highest, lowest, high, low, asked = message.tolist()
        if highest != -lowest:
            raise TrainingError(
                f"rank {self.rank} has come to {what!r}, another one to something else",
                hint="a strategy decides from step.rng, step.agree(...) and its state, "
                "never from a loss of one rank",
            )
        self._stop = self._stop or bool(asked)
        return bool(high == -low)

    def _collect(self, tensor: Tensor, operation: Any) -> None:
        """All-reduce in place."""
        if tensor.is_cuda:  # NCCL: enqueued, nobody waits here
            dist.all_reduce(tensor, operation)
        else:
            self._wait(dist.all_reduce(tensor, operation, async_op=True))

    def _wait(self, work: dist.Work | None) -> None:
        """Wait for one operation, with an eye on the others."""
        if work is None:
            raise TrainingError("this process has left the other ranks already")
        deadline = time.monotonic() + self._time_limit.total_seconds()
        while True:
            try:
                work.wait(POLL)
                return
            except RuntimeError as error:
                self._look_for_failure()
                if work.is_completed():
                    raise self._lost("a connection was closed: a process has died") from error
                if time.monotonic() > deadline:
                    seconds = self._time_limit.total_seconds()
                    raise self._lost(f"one of them did not answer for {seconds:g} s") from error

    def _note(self) -> dict[str, Any] | None:
        """What the first rank that failed has left, if it can be read."""
        with suppress(RuntimeError):
            if self._store.check([_FAILURE]):
                note: dict[str, Any] = json.loads(self._store.get(_FAILURE))
                return note
        return None

    def _look_for_failure(self) -> None:
        note = self._note()
        if note is not None and note["rank"] != self.rank:
            raise TrainingError(f"rank {note['rank']}: {note['message']}", hint=note["hint"])

    def _lost(self, why: str) -> TrainingError:
        return TrainingError(
            f"rank {self.rank} has lost the other ranks ({why})",
            hint="the same command goes on from the newest checkpoint; "
            "torchrun --max-restarts=1 does so by itself",
        )


def join(*, local_rank: int, cuda: bool, attempt: int = 0) -> JoinedRanks:
    """Meet the processes that torchrun has started, as its environment variables say.

    Args:
        attempt: how often torchrun has restarted them; its store still holds the addresses of the
            processes that are gone.

    Raises:
        TrainingError: they cannot be reached.
    """
    from torch.distributed.rendezvous import rendezvous

    try:
        store, rank, world = next(rendezvous("env://", timeout=TIME_LIMIT))
        store = PrefixStore(f"attempt-{attempt}", store)
        return JoinedRanks(store, rank=rank, world=world, local_rank=local_rank, cuda=cuda)
    except (RuntimeError, ValueError) as error:
        raise TrainingError(
            f"the other processes cannot be reached: {_first_line(error)}",
            hint="torchrun --standalone --nproc-per-node 2 -m pipeline train FILE",
        ) from error


def _digest(content: bytes) -> int:
    """62 bits: they and their negative fit into int64."""
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big") >> 2


def _first_line(error: BaseException) -> str:
    lines: Iterable[str] = str(error).strip().splitlines()
    return next(iter(lines), type(error).__name__)
