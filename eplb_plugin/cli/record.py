"""`eplb-plugin record OUT`: a window of routing from a running server, as a statistics file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..deployment import base_name
from ..errors import PluginError, mismatch
from .options import Json
from .writing import writing

if TYPE_CHECKING:
    from ..observe.windows import Recorded

Out = Annotated[Path, typer.Argument(help="Statistics file to write (.safetensors).")]
Url = Annotated[str | None, typer.Option(help="An SGLang server: asks its own recorder. The plugin need not be on.")]
State = Annotated[Path | None, typer.Option(help="state_directory of a server with the plugin, either engine.")]
Dumps = Annotated[list[Path] | None, typer.Option("--dump", help="Instead: files that SGLang's recorder has written.")]
Seconds = Annotated[float, typer.Option(min=0.1, max=86_400, help="How long to record.")]
Folder = Annotated[Path | None, typer.Option("--dumps", help="With --url: where the server writes; default /tmp.")]
Owners = Annotated[int, typer.Option(min=1, help="With --dump: ranks that route the same token.")]
Model = Annotated[str | None, typer.Option(help="Refuse the recording of any other model.")]
ApiKey = Annotated[str | None, typer.Option(envvar="API_KEY", help="Of the server, where it wants one.")]


def record(
    out: Out,
    url: Url = None,
    state: State = None,
    dump: Dumps = None,
    seconds: Seconds = 30.0,
    dumps: Folder = None,
    owner_group_size: Owners = 1,
    model: Model = None,
    api_key: ApiKey = None,
    as_json: Json = False,
) -> None:
    """Take the routing of the coming SECONDS from a running server into a file that advise, plan and replay read."""
    from ..runtime.state_directory import measures

    given = [name for name, value in (("--url", url), ("--state", state), ("--dump", dump)) if value]
    if len(given) != 1:
        expected = "one of --url (SGLang), --state (the plugin's own windows), --dump (SGLang's files)"
        fix = "pass one of the three"
        raise mismatch("record", found=" and ".join(given) or "no source", expected=expected, fix=fix)
    if out.suffix != ".safetensors":
        raise mismatch("OUT", found=out.name, expected="a name in .safetensors", fix="name it FILE.safetensors")
    window, header = _record(url, state, dump, seconds, dumps, owner_group_size, api_key)
    found = str(header.get("model", ""))
    if model is not None and base_name(found) != base_name(model):
        fix = "record from the server of that model"
        raise mismatch("model", found=found or "a recording without a name", expected=model, fix=fix)
    layers = {"num_layers": window.num_layers, "num_experts": window.num_experts}
    header = {**header, **layers, **measures(window)} | ({} if dump else {"seconds": seconds})
    header.pop("kind", None), header.pop("version", None)
    with writing(out):
        window.save(out, header)
    if as_json:
        typer.echo(json.dumps({"file": str(out), **header}, indent=2))
    else:
        tokens = f"{header['tokens']} tokens" if header["tokens"] else f"{window.load[0].sum():.0f} selections a layer"
        rows = "whole top-k rows" if window.sample is not None else "loads only: nothing can be said of nodes"
        named = f"{found}: " if found else ""
        typer.echo(f"{out}: {named}{window.num_layers} layers × {window.num_experts} experts, {tokens}, {rows}")


def _record(
    url: str | None, state: Path | None, dump: list[Path] | None, seconds: float, dumps: Path | None, owners: int,
    api_key: str | None,
) -> Recorded:  # fmt: skip
    if state is not None:
        from ..observe.windows import collect

        return collect(state, seconds)
    from ..engines.sglang.http_recorder import FOLDER, Recorder, read_dumps

    if dump:
        return read_dumps(dump, owners), {"engine": "sglang"}
    assert url is not None
    recorder = Recorder(url, _sglang(url, api_key), dumps or Path(FOLDER), api_key)
    return recorder.record(seconds), recorder.header()


def _sglang(url: str, api_key: str | None) -> dict[str, Any]:
    """What an SGLang server says of itself. Raises PluginError for a server of another kind."""
    from ..observe.http import ask_json

    try:
        info = ask_json(url, "/server_info", api_key) or {}
    except PluginError as error:
        if "HTTP status 404" not in str(error):
            raise
        info = {}
    if "expert_distribution_recorder_mode" not in info:
        expected = "an SGLang server; vLLM tells no routing over HTTP"
        fix = "start the server with the plugin and a state_directory, and pass that as --state"
        raise mismatch(url, found="another kind of server", expected=expected, fix=fix)
    return info
