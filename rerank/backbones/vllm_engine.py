"""A vLLM engine: started from wherever the caller stands, asked, and ended for good.

vLLM computes in processes of its own. They are spawned without the caller's main module, so a script needs no
`if __name__ == "__main__"`, a notebook and a running event loop may start one too, and a process that has threads
or has used its GPU is not forked. Memory is given back when they end.

While an engine starts, this process's environment holds what vLLM needs, its `__main__` is an empty module and its
standard error is held back; all three are as before when it has started. A VLLM_LOGGING_LEVEL of the user's own
lets vLLM log as it likes. Whatever else of `VLLM_*` the user has set is left as it is.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import threading
import types
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

from rerank.backbones.encoding import Encoder
from rerank.backbones.vllm_adapters import Base
from rerank.errors import AdapterError, BackboneError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from vllm import LLM, RequestOutput, SamplingParams
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.core_client import EngineCoreClient

_STARTING = threading.Lock()  # the environment is one for all threads
_CPU_CACHE = 2 * 2**30  # bytes of keys and values: some 90 000 tokens of a 135M model
_CPU_BLOCK = 32  # tokens; vLLM's own 128 on a CPU never shares a prompt's first 100 tokens
_SHUTDOWN_S = 30.0  # what it takes on a busy machine; a process that is killed leaves its shared memory behind
_FEW_CORES = 4  # vLLM keeps a core for its scheduler; of so few, the model gets them all
_LOGGING = ("VLLM_LOGGING_LEVEL", "VLLM_LOGGING_CONFIG_PATH", "VLLM_CONFIGURE_LOGGING")


@dataclass(slots=True, eq=False, weakref_slot=True)
class VLLMEngine:
    """One running engine with any number of LoRA adapters. `lock` guards it: vLLM's own class takes one caller.

    `rank` is the highest rank of an adapter that fits, None where the engine takes no adapters. `log` is what
    vLLM's processes write to their standard error; `watch` ends them if this process is killed.
    """

    llm: LLM | None = field(repr=False)  # vLLM asks its workers what to show
    encoder: Encoder
    base: Base
    log: IO[bytes]
    watch: subprocess.Popen[bytes]
    on_cpu: bool
    rank: int | None = None
    adapters: dict[str, LoRARequest] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)
    end: weakref.finalize[..., VLLMEngine] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        assert self.llm is not None
        # at Python's exit, too: before vLLM's own, which waits 5 s and kills
        self.end = weakref.finalize(self, _end, self.llm.llm_engine.engine_core, self.watch, self.log)

    @property
    def name(self) -> str:
        return self.base.name

    @property
    def scores_prompts(self) -> bool:
        """Whether a prompt's own log-probabilities can be asked for. On a CPU with room for adapters vLLM 0.32 dies of
        it, adapter or not."""
        return not (self.on_cpu and self.rank is not None)

    def running(self) -> LLM:
        if self.llm is None:
            raise BackboneError(f"the vLLM engine of {self.name} is closed; load it again")
        return self.llm

    def ask(
        self, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams], adapter: str | None
    ) -> list[RequestOutput]:
        """The outputs, in order. Raises BackboneError where vLLM refuses a call or has died."""
        with self.lock:
            llm, said = self.running(), _size(self.log)
            try:
                outputs: list[RequestOutput] = llm.generate(
                    [{"prompt_token_ids": list(ids)} for ids in prompts],
                    list(params),
                    lora_request=None if adapter is None else self.adapters[adapter],
                    use_tqdm=False,
                )
                return outputs
            except BaseException as error:
                if not _dead(llm):  # else what is left of these would come out among the next answers
                    engine = llm.llm_engine
                    engine.abort_request(list(engine.output_processor.request_states), internal=True)
                if not isinstance(error, Exception):
                    raise
                what = "has died and must be loaded again" if _dead(llm) else "cannot answer"
                raise BackboneError(
                    f"the vLLM engine of {self.name} {what}: {_reason(error, self.log, said)}"
                ) from error

    def attach(self, adapter: str) -> None:
        """Loads the adapter beside those that are there. Raises AdapterError when it does not belong to the model."""
        with self.lock:
            llm = self.running()
            if adapter in self.adapters:
                return
            if self.rank is None:
                raise AdapterError(
                    f"the vLLM engine of {self.name} was loaded without room for adapters; "
                    "load it with adapter=... or max_lora_rank=..."
                )
            folder = self.base.folder_of(adapter, self.rank)
            from vllm.lora.request import LoRARequest

            request = LoRARequest(adapter, len(self.adapters) + 1, str(folder))
            said = _size(self.log)
            try:
                llm.llm_engine.add_lora(request)
            except Exception as error:
                reason = _reason(error, self.log, said)
                raise AdapterError(f"vLLM cannot load adapter {adapter!r}: {reason}") from error
            self.adapters[adapter] = request

    def close(self) -> None:
        """Ends vLLM's processes and waits for them."""
        with self.lock:
            self.llm = None
            self.end()


def _end(core: EngineCoreClient, watch: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    core.shutdown(timeout=_SHUTDOWN_S)
    watch.kill()
    watch.communicate()
    log.close()


def start(base: Base, tokenizer: PreTrainedTokenizerBase, options: Mapping[str, object]) -> VLLMEngine:
    """`options` are those of `vllm.LLM`. Raises BackboneError with vLLM's reason where it cannot start."""
    importlib.import_module("torch._dynamo.config")  # before it could read what is set below for vLLM's processes
    log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  it lives as long as the engine
    with _STARTING, ExitStack() as around:
        if not any(os.environ.get(key) for key in _LOGGING):
            around.enter_context(_held_back(log))
        around.enter_context(_environment(eager=bool(options["enforce_eager"])))
        around.enter_context(_no_main())
        others = {process.pid for process in multiprocessing.active_children()}
        try:
            from vllm import LLM
            from vllm.platforms import current_platform

            chosen: dict[str, Any] = dict(options)
            on_cpu = bool(current_platform.is_cpu())
            if on_cpu:
                _for_cpu(chosen)
            llm = LLM(base.path, **chosen)
        except Exception as error:
            reason = _reason(error, log)
            log.close()
            raise BackboneError(f"vLLM cannot start {base.name}: {reason}") from error
        watch = end_with_this({process.pid for process in multiprocessing.active_children()} - others)
    encoder = Encoder(tokenizer, llm.llm_engine.model_config.max_model_len, base.name)
    return VLLMEngine(llm, encoder, base, log, watch, on_cpu, chosen.get("max_lora_rank"))


def end_with_this(pids: Iterable[int | None]) -> subprocess.Popen[bytes]:
    """A process that ends those when this one ends, were it by a kill: vLLM's would stay, with all their memory."""
    command = f"read _; kill {' '.join(map(str, pids))}"  # it reads until this process is gone
    null = subprocess.DEVNULL
    return subprocess.Popen(
        ["/bin/sh", "-c", command], stdin=subprocess.PIPE, stdout=null, stderr=null, start_new_session=True
    )


def _for_cpu(options: dict[str, Any]) -> None:
    """What serves best on a CPU, where neither the caller nor the environment says."""
    options.setdefault("block_size", _CPU_BLOCK)
    if options.keys() & {"kv_cache_memory_bytes", "gpu_memory_utilization"}:
        os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # vLLM would take it before either
    elif not os.environ.get("VLLM_CPU_KVCACHE_SPACE"):
        options["kv_cache_memory_bytes"] = _CPU_CACHE
    mine = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if options["tensor_parallel_size"] == 1 and 0 < len(mine) <= _FEW_CORES:
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, mine)))


@contextmanager
def _environment(*, eager: bool) -> Iterator[None]:
    before = dict(os.environ)
    wanted = {
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # standard output is the caller's
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "PYTHONWARNINGS": "ignore",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_NO_USAGE_STATS": "1",  # nothing is sent anywhere that the user has not asked for
    }
    if eager:
        wanted["TORCHDYNAMO_DISABLE"] = "1"  # else the first log-probabilities wait for a compiler
    for key, value in wanted.items():
        os.environ.setdefault(key, value)
    try:
        yield
    finally:
        for key in os.environ.keys() - before.keys():
            del os.environ[key]
        os.environ.update(before)


@contextmanager
def _no_main() -> Iterator[None]:
    """A spawned process runs the main module again; it finds an empty one."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def _held_back(log: IO[bytes]) -> Iterator[None]:
    """The standard error of this process, and of those that it starts now for good, goes to `log`."""
    sys.stderr.flush()
    kept = os.dup(2)
    os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _dead(llm: LLM) -> bool:
    resources = getattr(llm.llm_engine.engine_core, "resources", None)
    return resources is not None and resources.engine_dead


def _size(log: IO[bytes]) -> int:
    return os.fstat(log.fileno()).st_size


def _reason(error: Exception, log: IO[bytes], since: int = 0) -> str:
    """vLLM's class here knows only that a process of its own failed; the first error of that process says why."""
    text = os.pread(log.fileno(), 2**20, since).decode(errors="replace")
    found = re.search(r"^(?:\(.*\] )?[\w.]*(?:Error|Exception): (.+)$", text, re.MULTILINE)
    said = found[1] if found else str(error) or type(error).__name__
    said = re.sub(r"^\d+ validation errors? for \w+\s+|Value error, |\[type=.*", "", said, flags=re.DOTALL)
    return " ".join(said.split())[:400]
