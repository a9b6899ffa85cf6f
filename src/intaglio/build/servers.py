"""What can serve what: a model's form, read from its files, against what each server program says that it serves.

- A form is what a reader of the files meets, not what made them: AWQ and GPTQ of one library write the same form.
- It is read from file names and ``config.json`` alone, strictly; what is not known here is served by nobody.
- The server programs say themselves what they serve (``builder/servers/*.toml``); the tests hold them to it.

Source: ``quantization_config`` as transformers 5, compressed-tensors 0.19 and bitsandbytes 0.50 write it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from pathlib import Path

from intaglio import strictjson
from intaglio.dataclass import dataclass
from intaglio.errors import MachineError, RecipeError, UsageError
from intaglio.recipe.data import data_folder
from intaglio.recipe.modelfile import RUNTIMES
from intaglio.recipe.program import ServerProgram, load_server, names
from intaglio.strictjson import Json, Object

CONFIG = "config.json"
"""Where a model says what it is."""
QUANTIZATIONS = {
    "none": "not quantised, or a GGUF file, which says itself how it is",
    "int4": "weights in 4 bits, in groups (compressed-tensors): AWQ and GPTQ of llmcompressor",
    "int8-weights": "weights in 8 bits (compressed-tensors, W8A16)",
    "int8": "weights and activations in 8 bits (compressed-tensors, W8A8)",
    "fp8": "weights and activations in 8-bit floats, activations scaled as they come (compressed-tensors, FP8-dynamic)",
    "fp8-static": "the same with scales found by calibration (compressed-tensors, FP8)",
    "nf4": "weights in 4-bit NormalFloat (bitsandbytes)",
    "fp4": "weights in 4-bit floats (bitsandbytes)",
    "bnb-int8": "weights in 8 bits (bitsandbytes, LLM.int8)",
    "awq": "the files that AutoAWQ writes",
    "gptq": "the files that AutoGPTQ writes",
    "other": "any other",
}
"""The words for quantisations, with what each means."""


@dataclass(frozen=True, slots=True)
class Form:
    """What a server has to be able to read."""

    format: str
    """``gguf``, ``safetensors``, ``adapter`` or ``other``."""
    quantization: str = "none"
    """A word of :data:`QUANTIZATIONS`."""
    found: str = ""
    """What the files say, where there is no word for it."""

    def __str__(self) -> str:
        said = f" ({self.found})" if self.found else ""
        return self.format + (f" quantised as {self.quantization}" if self.quantization != "none" else "") + said


def form_of(files: Iterable[str], config: bytes | None) -> Form:
    """Return the form of a model with ``files`` whose ``config.json``, where it has one, is ``config``.

    Raises:
        CorruptContent: the configuration is not a JSON object.
    """
    files = set(files)
    endings = {name.rpartition(".")[2] for name in files}
    if "gguf" in endings:
        return Form("gguf")
    if config is None:
        adapter = "adapter_config.json" in files
        return Form("adapter") if adapter else Form("other", found=", ".join(sorted(endings)) or "no files")
    if "safetensors" not in endings:
        return Form("other", found=", ".join(sorted(endings)))
    about = strictjson.parse_object(config, what=CONFIG)
    quantization = about.get("quantization_config", about.get("compression_config"))
    if quantization is None:
        return Form("safetensors")
    if not isinstance(quantization, dict):
        return Form("safetensors", "other", "quantization_config is no object")
    word = _word(quantization)
    if word is not None:
        return Form("safetensors", word)
    parts = (quantization.get("quant_method"), quantization.get("format"))
    return Form("safetensors", "other", ", ".join(str(part)[:80] for part in parts if part is not None) or "no method")


def _word(config: Object) -> str | None:
    """Return the word for a ``quantization_config``."""
    method = config.get("quant_method")
    if method == "compressed-tensors":
        return _compressed(config)
    if method == "bitsandbytes":
        if config.get("load_in_8bit") is True:
            return "bnb-int8"
        kind = config.get("bnb_4bit_quant_type") if config.get("load_in_4bit") is True else None
        return kind if kind in ("nf4", "fp4") else None
    return method if method in ("awq", "gptq") else None


def _compressed(config: Object) -> str | None:
    """Return the word for a configuration of compressed-tensors, all of whose groups are quantised alike."""
    groups = config.get("config_groups")
    if not isinstance(groups, dict) or not groups or config.get("kv_cache_scheme") is not None:
        return None
    if config.get("sparsity_config") or config.get("quantization_status") not in ("compressed", None):
        return None
    found = {_group(group) for group in groups.values()}
    return found.pop() if len(found) == 1 else None


def _group(group: Json) -> str | None:
    weights = group.get("weights") if isinstance(group, dict) else None
    if not isinstance(group, dict) or not isinstance(weights, dict):
        return None
    if group.get("output_activations") is not None:
        return None
    inputs = group.get("input_activations")
    kind = (weights.get("type"), weights.get("num_bits"))
    if inputs is None:
        return "int4" if kind == ("int", 4) else "int8-weights" if kind == ("int", 8) else None
    if not isinstance(inputs, dict) or (inputs.get("type"), inputs.get("num_bits")) != kind:
        return None
    if kind == ("float", 8):
        return "fp8" if inputs.get("dynamic") is True else "fp8-static"
    return "int8" if kind == ("int", 8) else None


def program_name(runtime: str) -> str:
    """Return the server program that people call ``runtime``: ``llama.cpp`` is ``llama-cpp``."""
    return runtime.replace(".", "-")


def serves(program: ServerProgram, form: Form) -> bool:
    """Return whether ``program`` says that it serves ``form``."""
    return form.format in program.formats and form.quantization in program.quantizations


def missing(program: ServerProgram, form: Form, processor: Set[str]) -> tuple[str, ...]:
    """Return the flags that a processor lacks for ``program`` to serve ``form``, sorted."""
    needed = [flags for words, flags in program.needs if form.quantization in words]
    return tuple(sorted(frozenset[str]().union(*needed) - processor))


def programs(builder: Path | None = None) -> tuple[ServerProgram, ...]:
    """Return every server program, by name.

    Raises:
        RecipeError: the description of one is wrong.
    """
    folder = builder or data_folder("builder")
    return tuple(load_server(name, folder) for name in names(folder / "servers"))


def serving(form: Form, builder: Path | None = None) -> tuple[ServerProgram, ...]:
    """Return the server programs that serve ``form``, by name: the first is what serves it when nobody chooses.

    Raises:
        RecipeError: the description of one is wrong.
    """
    return tuple(program for program in programs(builder) if serves(program, form))


def choose(
    form: Form, runtime: str | None, builder: Path | None = None, *, processor: Set[str] | None = None
) -> ServerProgram:
    """Return the server program that people call ``runtime``, or the first that serves ``form``.

    Args:
        form: what is to be served.
        runtime: who is to serve it.
        builder: where the programs are.
        processor: flags of the processor that is to serve it; ``None`` where that is not known yet.

    Raises:
        UsageError: it does not serve that form, or nothing here does; the hint names what does.
        MachineError: it does, but not with that processor.
        RecipeError: there is no server of that name.
    """
    found = serving(form, builder)
    able = [one.name for one in found if processor is None or not missing(one, form, processor)]
    if runtime is not None:
        program = load_server(program_name(runtime), builder or data_folder("builder"))
        if program.name in able:
            return program
        if processor is not None and serves(program, form):
            raise _unable(program, form, processor, able)
    elif able:
        return next(one for one in found if one.name == able[0])
    elif processor is not None and found:
        raise _unable(found[0], form, processor, able)
    raise UsageError(
        f"no server here serves {form}" if runtime is None else f"{runtime} does not serve {form}",
        hint=f"it is served by {', '.join(able)} (--runtime)" if able else _hint(form),
    )


def _unable(program: ServerProgram, form: Form, processor: Set[str], able: Sequence[str]) -> MachineError:
    flags = ", ".join(missing(program, form, processor))
    return MachineError(
        f"{program.name} serves {form} on processors with {flags}, which this machine's has not",
        hint=f"here it is served by {', '.join(able)} (--runtime)" if able else "serve it on another machine",
    )


def _hint(form: Form) -> str:
    """Return what to do about a form that nothing serves."""
    hints = {
        "adapter": 'an adapter is no model: let the recipe go on with a step that merges it (uses = "merge")',
        "other": "what is served: a GGUF file, or safetensors with their config.json",
    }
    return hints.get(form.format, "what is served by what stands in docs/serving.md: convert or quantise it otherwise")


def check(form: Form, runtime: str, builder: Path | None = None) -> None:
    """Refuse a recipe whose runtime cannot serve what it makes.

    Raises:
        RecipeError: ``runtime`` does not serve ``form``; the hint names what does. Or there is no server of that name.
    """
    if not serves(load_server(program_name(runtime), builder or data_folder("builder")), form):
        able = {program.name for program in serving(form, builder)}
        names = [f'"{name}"' for name in RUNTIMES if program_name(name) in able]
        hint = f"it is served by runtime = {' or '.join(names)}" if names else _hint(form)
        raise RecipeError(f"image.runtime: {runtime} does not serve {form}", hint=hint)


def check_outputs(patterns: Iterable[str], runtime: str, builder: Path | None = None) -> None:
    """Refuse, before anything runs, a recipe whose runtime serves no model with files of those ``patterns``.

    Only the format shows there; how the weights are quantised is known when they are made: see :func:`check`.

    Raises:
        RecipeError: as :func:`check` says.
    """
    endings = {pattern.rpartition(".")[2] for pattern in patterns}
    found = next((one for one in ("gguf", "safetensors") if one in endings), None)
    program = load_server(program_name(runtime), builder or data_folder("builder"))
    if found is not None and found not in program.formats:
        check(Form(found), runtime, builder)


def table(builder: Path | None = None) -> str:
    """Return, as a Markdown table, which server program serves which form.

    Raises:
        RecipeError: the description of one is wrong.
    """
    found = programs(builder)
    forms = [Form("gguf")] + [Form("safetensors", word) for word in QUANTIZATIONS if word != "other"]
    lines = [f"| form | {' | '.join(program.name for program in found)} |", "|---|" + "---|" * len(found)]
    for form in forms:
        title = "GGUF" if form.format == "gguf" else f"safetensors, `{form.quantization}`"
        lines.append(f"| {title} | {' | '.join(_mark(program, form) for program in found)} |")
    return "\n".join(lines) + "\n"


def _mark(program: ServerProgram, form: Form) -> str:
    if not serves(program, form):
        return "—"
    return " ".join(["yes", *(f"(`{flag}`)" for flag in missing(program, form, frozenset()))])
