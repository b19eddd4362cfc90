"""The checkpoint to train on."""
from typing import Any

from comfy_api.latest import io

from ..trainer.families.detect import check_vae, describe_checkpoint
from ..trainer.spec import Base
from .paths import model_choices, model_file, tokenizer_folder
from .sockets import LoomBase

_BAKED = "from the checkpoint"


class LoomBaseModel(io.ComfyNode):
    """A single-file checkpoint, recognised from its header."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoomBaseModel",
            display_name="Base Model",
            category="LoRA Loom/training",
            description="Chooses the checkpoint to train on. Only its header is read here.",
            inputs=[
                io.Combo.Input("checkpoint", options=model_choices("checkpoints"), tooltip="An SD 1.x, SD 2.x or SDXL checkpoint (.safetensors)."),
                io.Combo.Input(
                    "vae",
                    options=[_BAKED, *model_choices("vae")],
                    default=_BAKED,
                    optional=True,
                    tooltip="A separate VAE to encode the pictures with; otherwise the checkpoint's own.",
                ),
            ],
            outputs=[LoomBase.Output(display_name="base", tooltip="The base for a training node.")],
        )

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str, vae: str = _BAKED) -> Any:
        return [_identity(model_file(kind, name)) for kind, name in (("checkpoints", checkpoint), ("vae", vae)) if name != _BAKED]

    @classmethod
    def execute(cls, checkpoint: str, vae: str = _BAKED) -> io.NodeOutput:
        path = model_file("checkpoints", checkpoint)
        described = describe_checkpoint(path)
        vae_path = None if vae == _BAKED else model_file("vae", vae)
        if vae_path:
            check_vae(vae_path)
        elif not described.has_vae:
            raise ValueError(f"{checkpoint} holds no VAE: choose one in the vae input.")
        size, mtime_ns = _identity(path)
        base = Base(
            name=checkpoint,
            checkpoint=str(path),
            family=described.family,
            tokenizer=str(tokenizer_folder()),
            header_sha256=described.header.sha256,
            size=size,
            mtime_ns=mtime_ns,
            vae=str(vae_path) if vae_path else None,
            vae_mtime_ns=vae_path.stat().st_mtime_ns if vae_path else None,
        )
        return io.NodeOutput(base)


def _identity(path: Any) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns
