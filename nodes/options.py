"""Settings beside a training's six numbers: nodes that chain into one set of options."""
import json
from typing import Any, get_args

from comfy_api.latest import io

from ..trainer.adapters.files import sha256_of
from ..trainer.options import (
    AdapterFile,
    EmaDevice,
    HuberSchedule,
    Loss,
    NetworkKind,
    NetworkOptions,
    Objective,
    OptimizerName,
    OptimizerOptions,
    Options,
    Prediction,
    Sampling,
    SaveFormat,
    Schedule,
    Targets,
    TimestepDistribution,
    Weighting,
)
from .chaining import CATEGORY, chained
from .paths import model_choices, model_file
from .sockets import LoomOptions

_NOTHING = "nothing"


class LoomSampling(io.ComfyNode):
    """Pictures drawn while training."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoomSampling",
            display_name="Sampling Options",
            category=CATEGORY,
            description="Which sample pictures a training draws, and how often.",
            inputs=[
                io.String.Input("prompts", multiline=True, default="", tooltip="One prompt a line. Empty: the first caption of the dataset."),
                io.String.Input("negative", default="", tooltip="The negative prompt."),
                io.Int.Input(
                    "every_steps",
                    default=100,
                    min=0,
                    max=100000,
                    tooltip="Draw every so many steps, before the first and at the end. 0: before the first and at the end only.",
                ),
                io.Float.Input("guidance_scale", default=7.0, min=0.0, max=50.0, step=0.1, tooltip="Classifier-free guidance (cfg)."),
                io.Int.Input("steps", default=20, min=1, max=200, tooltip="Sampler steps (Euler)."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**64 - 1,
                    control_after_generate=False,
                    tooltip="Seed of the pictures' noise, the same at every drawing.",
                ),
                io.Boolean.Input(
                    "draw", default=True, optional=True, tooltip="Off: no sample pictures, which saves time; nothing comes out of samples."
                ),
                LoomOptions.Input("options", optional=True, tooltip="Other options nodes, chained."),
            ],
            outputs=[LoomOptions.Output(display_name="options", tooltip="For a training node, or the next options node.")],
        )

    @classmethod
    def execute(cls, prompts: str, options: Options | None = None, **values: Any) -> io.NodeOutput:
        lines = tuple(line.strip() for line in prompts.splitlines() if line.strip())
        return chained(options, "sampling", "Sampling Options", Sampling, {"prompts": lines, **values})


class LoomOptimizer(io.ComfyNode):
    """Optimiser, learning-rate schedule, accumulation, clipping and average."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoomOptimizer",
            display_name="Optimizer Options",
            category=CATEGORY,
            description="Optimiser, learning-rate schedule, gradient accumulation, clipping and EMA of a training.",
            inputs=[
                io.Combo.Input(
                    "name",
                    options=list(get_args(OptimizerName)),
                    default="adamw",
                    tooltip="The optimiser. Those that are not torch's own need a package, which the error names.",
                ),
                io.String.Input(
                    "arguments", default="{}", multiline=True, tooltip='Arguments of the optimiser as JSON, e.g. {"weight_decay": 0.01}.'
                ),
                io.Combo.Input(
                    "schedule", options=list(get_args(Schedule)), default="constant", tooltip="How the learning rate goes on after the warm-up."
                ),
                io.Float.Input(
                    "warmup", default=0.0, min=0.0, max=1_000_000.0, step=0.01, tooltip="Steps of warm-up; below 1, a share of all steps."
                ),
                io.Float.Input("cycles", default=1.0, min=0.01, max=1000.0, step=0.5, tooltip="Cycles of cosine_with_restarts."),
                io.Float.Input("power", default=1.0, min=0.01, max=10.0, step=0.1, tooltip="Power of the polynomial schedule."),
                io.Int.Input(
                    "gradient_accumulation_steps", default=1, min=1, max=1024, tooltip="Batches a step: a larger batch in the same memory."
                ),
                io.Float.Input("max_grad_norm", default=1.0, min=0.0, max=1000.0, step=0.1, tooltip="Gradients are clipped to this norm. 0: never."),
                io.Float.Input(
                    "ema_decay",
                    default=0.0,
                    min=0.0,
                    max=0.99999,
                    step=0.001,
                    round=0.00001,
                    tooltip="What is saved is the moving average of the weights with this decay, e.g. 0.999. 0: off.",
                ),
                io.String.Input(
                    "step_rules",
                    default="",
                    optional=True,
                    tooltip="For piecewise_constant: 1:100,0.1:200,0.01 is the whole rate up to step 100, a tenth up to 200, then a hundredth.",
                ),
                io.Combo.Input(
                    "ema_device",
                    options=list(get_args(EmaDevice)),
                    default="with the weights",
                    optional=True,
                    tooltip="Where the average is kept. cpu spares the GPU a copy of what trains, and makes each step wait for it.",
                ),
                io.Boolean.Input(
                    "save_average",
                    default=True,
                    optional=True,
                    tooltip="What is saved: the average, or the last weights with the average kept aside.",
                ),
                LoomOptions.Input("options", optional=True, tooltip="Other options nodes, chained."),
            ],
            outputs=[LoomOptions.Output(display_name="options", tooltip="For a training node, or the next options node.")],
        )

    @classmethod
    def validate_inputs(cls, arguments: Any = "{}") -> bool | str:
        if isinstance(arguments, str):
            try:
                _arguments(arguments)
            except ValueError as error:
                return str(error)
        return True

    @classmethod
    def execute(cls, arguments: str, options: Options | None = None, **values: Any) -> io.NodeOutput:
        values["arguments"] = _arguments(arguments)
        return chained(options, "optimizer", "Optimizer Options", OptimizerOptions, values)


def _arguments(text: str) -> tuple[tuple[str, Any], ...]:
    """The optimiser's arguments from JSON. Raises ValueError."""
    try:
        arguments = json.loads(text or "{}")
    except ValueError as error:
        raise ValueError(f"arguments is not JSON ({error}): write it like {{\"weight_decay\": 0.01}}") from error
    if not isinstance(arguments, dict):
        raise ValueError('arguments is not a JSON object: write it like {"weight_decay": 0.01}')
    return tuple((name, tuple(value) if isinstance(value, list) else value) for name, value in arguments.items())


class LoomObjective(io.ComfyNode):
    """What the optimiser makes small."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoomObjective",
            display_name="Objective Options",
            category=CATEGORY,
            description="Loss, its weighting over timesteps, and the noise of a training.",
            inputs=[
                io.Combo.Input(
                    "prediction",
                    options=list(get_args(Prediction)),
                    default="auto",
                    tooltip="What the base predicts. auto: what its file shows, which for SD 1.x is always epsilon.",
                ),
                io.Boolean.Input(
                    "zero_terminal_snr", default=False, tooltip="Rescale the noise schedule so that the last timestep is pure noise. For v bases."
                ),
                io.Combo.Input(
                    "weighting",
                    options=list(get_args(Weighting)),
                    default="none",
                    tooltip="Weight of a timestep: min_snr (with min_snr_gamma) or debiased estimation.",
                ),
                io.Float.Input("min_snr_gamma", default=5.0, min=0.1, max=1000.0, step=0.5, tooltip="Gamma of min_snr. 5 is the paper's."),
                io.Float.Input(
                    "noise_offset", default=0.0, min=0.0, max=1.0, step=0.01, tooltip="For darker and brighter pictures, e.g. 0.05. 0: off."
                ),
                io.Int.Input("multires_noise", default=0, min=0, max=10, tooltip="Coarser noises that are added, e.g. 6. 0: off."),
                io.Float.Input("multires_discount", default=0.3, min=0.01, max=0.99, step=0.05, tooltip="Weight of each coarser noise."),
                io.Float.Input(
                    "input_perturbation", default=0.0, min=0.0, max=1.0, step=0.05, tooltip="Extra noise in the input alone, e.g. 0.1. 0: off."
                ),
                io.Combo.Input("loss", options=list(get_args(Loss)), default="l2", tooltip="huber and smooth_l1 care less about outliers."),
                io.Float.Input(
                    "huber_c", default=0.1, min=0.001, max=10.0, step=0.01, tooltip="Where huber and smooth_l1 turn from square to straight."
                ),
                io.Combo.Input(
                    "huber_schedule", options=list(get_args(HuberSchedule)), default="snr", tooltip="How huber_c changes with the timestep."
                ),
                io.Int.Input("timestep_min", default=0, min=0, max=999, tooltip="Timesteps are drawn from here on."),
                io.Int.Input("timestep_max", default=1000, min=1, max=1000, tooltip="Timesteps are drawn below this."),
                io.Combo.Input(
                    "timestep_distribution", options=list(get_args(TimestepDistribution)), default="uniform", tooltip="How timesteps are drawn."
                ),
                io.Float.Input(
                    "timestep_mean", default=0.0, min=-10.0, max=10.0, step=0.1, tooltip="Of logit_normal: above 0 more noise, below 0 less."
                ),
                io.Float.Input("timestep_deviation", default=1.0, min=0.01, max=10.0, step=0.1, tooltip="Of logit_normal."),
                LoomOptions.Input("options", optional=True, tooltip="Other options nodes, chained."),
            ],
            outputs=[LoomOptions.Output(display_name="options", tooltip="For a training node, or the next options node.")],
        )

    @classmethod
    def execute(cls, options: Options | None = None, **values: Any) -> io.NodeOutput:
        return chained(options, "objective", "Objective Options", Objective, values)


class LoomNetwork(io.ComfyNode):
    """What is added to the base, and where."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoomNetwork",
            display_name="Network Options",
            category=CATEGORY,
            description="The adapter's kind, and which layers of the base get one.",
            inputs=[
                io.Combo.Input("kind", options=list(get_args(NetworkKind)), default="lora", tooltip="LoRA, or LyCORIS' LoHa or LoKr."),
                io.Boolean.Input("rank_stabilized", default=False, tooltip="rsLoRA: scale alpha / sqrt(rank), for high ranks. For kind lora."),
                io.Boolean.Input("decompose", default=False, tooltip="DoRA: direction and length of the weights apart. For kind lora."),
                io.Int.Input(
                    "lokr_factor", default=0, min=0, max=1024, tooltip="Size of LoKr's first factor; 0 is near the square root of the layer's."
                ),
                io.Combo.Input(
                    "targets", options=list(get_args(Targets)), default="transformer", tooltip="The layers that are adapted. See this node's help."
                ),
                io.Int.Input(
                    "conv_rank",
                    default=0,
                    min=0,
                    max=1024,
                    tooltip="Adapts 3x3 convolutions too, with this rank. 0: only where targets says so.",
                ),
                io.Float.Input("conv_alpha", default=0.0, min=0.0, max=4096.0, step=0.5, tooltip="Alpha for conv_rank. 0: in the same proportion."),
                io.Float.Input(
                    "dropout", default=0.0, min=0.0, max=0.99, step=0.05, tooltip="Share of the inputs left out at each step. For kind lora."
                ),
                io.String.Input(
                    "pattern",
                    default="",
                    tooltip="A regular expression that a layer's whole diffusers name has to match, instead of targets.",
                ),
                io.String.Input(
                    "block_ranks",
                    default="",
                    multiline=True,
                    tooltip="Ranks of blocks, one a line: down_blocks.1 = 8. 0 leaves the block out.",
                ),
                io.Combo.Input("save_format", options=list(get_args(SaveFormat)), default="fp16", tooltip="Number format of the file."),
                io.Float.Input(
                    "rank_dropout",
                    default=0.0,
                    min=0.0,
                    max=0.9,
                    step=0.05,
                    optional=True,
                    tooltip="Share of the delta's rows left out at each step. For kinds loha and lokr.",
                ),
                io.Float.Input(
                    "module_dropout",
                    default=0.0,
                    min=0.0,
                    max=0.9,
                    step=0.05,
                    optional=True,
                    tooltip="Share of the adapted layers left out at each step. For kinds loha and lokr.",
                ),
                io.Combo.Input(
                    "start_from",
                    options=[_NOTHING, *model_choices("loras")],
                    default=_NOTHING,
                    optional=True,
                    tooltip="An adapter whose weights are the first ones; of the same kind and ranks.",
                ),
                LoomOptions.Input("options", optional=True, tooltip="Other options nodes, chained."),
            ],
            outputs=[LoomOptions.Output(display_name="options", tooltip="For a training node, or the next options node.")],
        )

    @classmethod
    def fingerprint_inputs(cls, start_from: str = _NOTHING, **_: Any) -> Any:
        return None if start_from == _NOTHING else model_file("loras", start_from).stat().st_mtime_ns

    @classmethod
    def execute(
        cls, block_ranks: str, conv_alpha: float, start_from: str = _NOTHING, options: Options | None = None, **values: Any
    ) -> io.NodeOutput:
        values.update(block_ranks=_block_ranks(block_ranks), conv_alpha=conv_alpha or None)
        if start_from != _NOTHING:
            path = model_file("loras", start_from)
            values["start_from"] = AdapterFile(path=str(path), sha256=sha256_of(path))
        return chained(options, "network", "Network Options", NetworkOptions, values)


def _block_ranks(text: str) -> tuple[tuple[str, int], ...]:
    """Pairs from lines like `down_blocks.1 = 8`. Raises ValueError."""
    pairs = []
    for line in filter(None, map(str.strip, text.splitlines())):
        prefix, _, rank = (part.strip() for part in line.partition("="))
        if not prefix or not rank.isdecimal():
            raise ValueError(f"block_ranks: {line!r} is not a line like down_blocks.1 = 8.")
        pairs.append((prefix, int(rank)))
    return tuple(pairs)
