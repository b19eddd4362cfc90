"""The settings that a training has beside its six numbers, one model a group, as the options nodes chain them."""
import math
import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from .typed import Model, Utf8

NetworkKind = Literal["lora", "loha", "lokr"]
Targets = Literal["attention", "attention+ff", "transformer", "all linear", "transformer+conv"]
SaveFormat = Literal["fp16", "bf16", "fp32"]
OptimizerName = Literal[
    "adamw", "adamw8bit", "paged_adamw8bit", "adafactor", "lion", "prodigy", "adamw_schedule_free", "came", "sgd", "radam", "nadam",
    "rmsprop", "adagrad",
]
Schedule = Literal["constant", "linear", "cosine", "cosine_with_restarts", "polynomial", "piecewise_constant"]
PredictionKind = Literal["epsilon", "v"]
Prediction = Literal["auto", "epsilon", "v"]
Weighting = Literal["none", "min_snr", "debiased"]
Loss = Literal["l2", "huber", "smooth_l1"]
HuberSchedule = Literal["constant", "exponential", "snr"]
EmaDevice = Literal["with the weights", "cpu"]
BaseFormat = Literal["as precision", "fp8"]
TimestepDistribution = Literal["uniform", "logit_normal"]


PLACEHOLDER = re.compile(r"[^\s(),:\\]{1,64}")


class AdapterFile(Model):
    """An adapter: its path (absolute) and the sha256 of its bytes."""

    path: Utf8
    sha256: str


class NetworkOptions(Model):
    """What is added to the base, beside rank and alpha.

    `kind`: LoRA (https://arxiv.org/abs/2106.09685), LoHa (https://arxiv.org/abs/2108.06098) or LoKr (https://arxiv.org/abs/2309.14859).
    `rank_stabilized`: scale alpha / sqrt(rank) (https://arxiv.org/abs/2312.03732). `decompose`: DoRA (https://arxiv.org/abs/2402.09353).
    `dropout`: the share of the inputs that LoRA's layers leave out at a step; LoHa and LoKr leave out rows of the delta (`rank_dropout`) and
    whole layers (`module_dropout`) instead. `lokr_factor`: the smaller side's length of LoKr's first factor, where it divides the layer's; 0 is
    near the square root. `targets`: a preset, or `pattern`, a regular expression that a module's whole diffusers name has to match. `conv_rank`
    above 0 adds the 3x3 convolutions to every preset, and is the rank of those that a pattern matches; at 0 they are adapted, with the common
    rank, only by "transformer+conv" or a pattern. `block_ranks`: (prefix of a module's name up to a dot, rank); rank 0 leaves the block out;
    the longest prefix counts. Ranks other than the common one keep alpha / rank. `start_from`: an adapter of the same kind and ranks whose
    weights are the first ones.
    """

    kind: NetworkKind = "lora"
    rank_stabilized: bool = False
    decompose: bool = False
    lokr_factor: int = Field(default=0, ge=0, le=1024)
    conv_rank: int = Field(default=0, ge=0, le=1024)
    conv_alpha: float | None = Field(default=None, gt=0, le=4096)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    rank_dropout: float = Field(default=0.0, ge=0, le=0.9)
    module_dropout: float = Field(default=0.0, ge=0, le=0.9)
    targets: Targets = "transformer"
    pattern: str = Field(default="", max_length=1000)
    block_ranks: tuple[tuple[str, Annotated[int, Field(ge=0, le=1024)]], ...] = ()
    save_format: SaveFormat = "fp16"
    start_from: AdapterFile | None = None

    @field_validator("pattern")
    @classmethod
    def _is_a_pattern(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return pattern

    @model_validator(mode="after")
    def _possible(self) -> "NetworkOptions":
        if self.kind != "lora" and (self.rank_stabilized or self.decompose or self.dropout):
            raise ValueError(f"rank_stabilized, decompose and dropout belong to the kind lora, and the kind is {self.kind}")
        if self.kind == "lora" and (self.rank_dropout or self.module_dropout):
            raise ValueError("rank_dropout and module_dropout belong to the kinds loha and lokr: kind lora has dropout")
        if self.lokr_factor and self.kind != "lokr":
            raise ValueError(f"lokr_factor belongs to the kind lokr, and the kind is {self.kind}")
        if self.decompose and self.start_from:
            raise ValueError("start_from does not work with decompose: turn one of them off")
        if self.conv_alpha is not None and not self.conv_rank:
            raise ValueError("conv_alpha needs a conv_rank")
        prefixes = [prefix.rstrip(".") for prefix, _ in self.block_ranks]
        for prefix in prefixes:
            if prefixes.count(prefix) > 1:
                raise ValueError(f"block_ranks has two ranks for {prefix!r}")
        return self


class Network(NetworkOptions):
    """The whole network: W + alpha / rank * up @ down, or the kind's own delta."""

    rank: int = Field(default=16, ge=1, le=1024)
    alpha: float = Field(default=16.0, gt=0, le=4096)


class OptimizerOptions(Model):
    """How the weights move.

    `arguments`: keyword arguments of the optimiser's own class beside the learning rate, e.g. (("weight_decay", 0.01), ("betas",
    (0.9, 0.99))). `warmup`: steps from 1 on, a share of all steps below. `cycles`: of cosine_with_restarts; `power`: of polynomial.
    `step_rules`: of piecewise_constant, as diffusers writes them: "1:100,0.1:200,0.01" is 1 up to step 100, 0.1 up to step 200, then 0.01.
    `max_grad_norm` 0: no clipping. `ema_decay` 0: no EMA; `ema_device`: where the average is kept. `save_average`: the file gets the average where
    there is one; otherwise the last weights, and the average stays in the states.
    """

    name: OptimizerName = "adamw"
    arguments: tuple[tuple[str, bool | int | float | tuple[float, ...] | None], ...] = ()
    schedule: Schedule = "constant"
    warmup: float = Field(default=0.0, ge=0, le=1_000_000)
    cycles: float = Field(default=1.0, gt=0, le=1000)
    power: float = Field(default=1.0, gt=0, le=10)
    gradient_accumulation_steps: int = Field(default=1, ge=1, le=1024)
    max_grad_norm: float = Field(default=1.0, ge=0)
    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    step_rules: str = Field(default="", max_length=10_000)
    ema_device: EmaDevice = "with the weights"
    save_average: bool = True

    @model_validator(mode="after")
    def _has_its_rules(self) -> "OptimizerOptions":
        if self.schedule == "piecewise_constant":
            pieces(self.step_rules)
        elif self.step_rules:
            raise ValueError(f"step_rules belong to the schedule piecewise_constant, and the schedule is {self.schedule}")
        return self


def pieces(step_rules: str) -> tuple[list[tuple[int, float]], float]:
    """Pairs (step before which it holds, factor) in order, and the factor after the last. Raises ValueError."""
    *rules, last = step_rules.split(",")
    try:
        found = [(int(step), float(value)) for value, _, step in (rule.partition(":") for rule in rules)]
        after = float(last)
    except ValueError:
        raise ValueError(f"step_rules {step_rules[:80]!r} are not like 1:100,0.1:200,0.01 (factor:up to this step, and the last factor)") from None
    if not all(math.isfinite(value) and value >= 0 for value in (*(value for _, value in found), after)):
        raise ValueError(f"step_rules {step_rules[:80]!r}: a factor is a finite number, and not below 0")
    steps = [step for step, _ in found]
    if steps != sorted(set(steps)) or any(step < 1 for step in steps):
        raise ValueError(f"step_rules {step_rules[:80]!r}: each step is later than the one before")
    return found, after


class Objective(Model):
    """What the optimiser makes small.

    `prediction`: what the model gives; auto is what the base is known to give. `zero_terminal_snr`: https://arxiv.org/abs/2305.08891.
    `weighting`: min-SNR-gamma (https://arxiv.org/abs/2303.09556) with `min_snr_gamma`, or debiased estimation
    (https://arxiv.org/abs/2310.08442). `noise_offset`: https://www.crosslabs.org/blog/diffusion-with-offset-noise. `multires_noise`:
    number of coarser noises added, each weighted by `multires_discount` to its number; 0 is off. `input_perturbation`:
    https://arxiv.org/abs/2301.11706. `loss`: huber and smooth_l1 with `huber_c`, which `huber_schedule` changes with the timestep
    (https://arxiv.org/abs/2403.16728). Timesteps are drawn from [`timestep_min`, `timestep_max`).
    """

    prediction: Prediction = "auto"
    zero_terminal_snr: bool = False
    weighting: Weighting = "none"
    min_snr_gamma: float = Field(default=5.0, gt=0, le=1000)
    noise_offset: float = Field(default=0.0, ge=0, le=1)
    multires_noise: int = Field(default=0, ge=0, le=10)
    multires_discount: float = Field(default=0.3, gt=0, lt=1)
    input_perturbation: float = Field(default=0.0, ge=0, le=1)
    loss: Loss = "l2"
    huber_c: float = Field(default=0.1, ge=0.0001, le=10)
    huber_schedule: HuberSchedule = "snr"
    timestep_min: int = Field(default=0, ge=0, lt=1000)
    timestep_max: int = Field(default=1000, gt=0, le=1000)
    timestep_distribution: TimestepDistribution = "uniform"
    timestep_mean: float = Field(default=0.0, ge=-10, le=10)
    timestep_deviation: float = Field(default=1.0, gt=0, le=10)

    @model_validator(mode="after")
    def _possible(self) -> "Objective":
        if self.timestep_min >= self.timestep_max:
            raise ValueError(f"timestep_min {self.timestep_min} is not below timestep_max {self.timestep_max}")
        return self


class TextOptions(Model):
    """How captions and prompts are read, and whether the text encoders get an adapter too: at `learning_rate`, 0: not.

    `clip_skip`: which layer of the text encoders counts, from the end: 1 is the last; 0 is the base's own. `max_tokens`: what is longer than 75
    tokens goes on in further chunks of 75, as ComfyUI does it; the rest is cut off. `emphasis`: `(word:1.2)` weighs words, as in ComfyUI;
    otherwise parentheses are plain text.
    """

    learning_rate: float = Field(default=0.0, ge=0, le=10)
    clip_skip: int = Field(default=0, ge=0, le=12)
    max_tokens: Literal[75, 150, 225] = 75
    emphasis: bool = False

    @property
    def chunks(self) -> int:
        """`max_tokens` in chunks of the text encoder."""
        return self.max_tokens // 75


class NewWord(Model):
    """A word that the base does not know, which stands for vectors that are trained (textual inversion, https://arxiv.org/abs/2208.01618).

    `placeholder`: the word as captions and prompts write it. `initializer`: words of the base whose vectors the new ones begin with, in turn;
    without any they are drawn from the spread of all words.
    """

    placeholder: str
    initializer: str = ""
    vectors: int = Field(default=1, ge=1, le=75)

    @field_validator("placeholder")
    @classmethod
    def _one_word(cls, placeholder: str) -> str:
        if not PLACEHOLDER.fullmatch(placeholder):
            raise ValueError(f"the placeholder {placeholder!r} is not one word of up to 64 characters without spaces and without , : ( ) \\")
        return placeholder


class PivotalWord(NewWord):
    """A new word that is trained along with a LoRA, at a `learning_rate` of its own (pivotal tuning, https://arxiv.org/abs/2106.05744)."""

    learning_rate: float = Field(default=1e-3, gt=0, le=10)


class Prior(Model):
    """Prior preservation (https://arxiv.org/abs/2208.12242, section 3.2): at each step, as many pictures of the class as of the subject.

    `weight` is that of their loss (prior_loss_weight); with 0 no picture of the class is looked at. Where the class dataset has fewer than
    `num_class_images` pictures, the base draws the rest from `class_prompt` before it is trained; without a prompt none are drawn.
    """

    weight: float = Field(default=1.0, ge=0, le=100)
    class_prompt: str = ""
    num_class_images: int = Field(default=100, ge=1, le=10_000)
    steps: int = Field(default=25, ge=1, le=200)
    guidance_scale: float = Field(default=7.0, ge=0, le=50)


class Sampling(Model):
    """Pictures drawn while training, none if `draw` is off. `every_steps` 0: only before the first step and at the end. Sizes in pixels."""

    draw: bool = True
    prompts: tuple[str, ...] = ()
    negative: str = ""
    every_steps: int = Field(default=0, ge=0)
    seed: int = Field(default=0, ge=0, lt=2**64)
    steps: int = Field(default=20, ge=1, le=200)
    guidance_scale: float = Field(default=7.0, ge=0, le=50)
    width: int = Field(default=512, ge=64, le=4096, multiple_of=8)
    height: int = Field(default=512, ge=64, le=4096, multiple_of=8)


class StateOfRun(Model):
    """The state of another run: its folder (absolute) and the step."""

    run: Utf8
    step: int = Field(ge=1)


class Checkpointing(Model):
    """When a state is saved (0: never on that account), how many states are kept, and how often the held-out pictures are looked at.

    A state is always saved at the end and at a stop; with `keep_last` 0 none is left once the training has finished. Validation always comes
    before the first step and after the last. `keep_best`: the state with the lowest validation loss is kept as well, and `adapter` best takes the
    weights from it. `start`: where a new run goes on from. `tensorboard`: losses and pictures are written for it too. `adapter_every_steps`: what
    a training gives is also saved every so many steps beside the last one (0: not), see `spec.step_output`.
    """

    every_steps: int = Field(default=500, ge=0)
    every_minutes: float = Field(default=0.0, ge=0, le=10_000)
    keep_last: int = Field(default=2, ge=0, le=1000)
    validate_every_steps: int = Field(default=0, ge=0)
    keep_best: bool = False
    adapter: Literal["last", "best"] = "last"
    start: StateOfRun | None = None
    tensorboard: bool = False
    adapter_every_steps: int = Field(default=0, ge=0)


class Hardware(Model):
    """Memory and speed. `base_format`: how the frozen base is stored; fp8 is e4m3 (https://arxiv.org/abs/2209.05433), computed in `precision`.

    `processes`: how many train together, each on `batch_size` pictures a step.
    """

    gradient_checkpointing: bool = False
    compile: bool = False
    channels_last: bool = False
    base_format: BaseFormat = "as precision"
    processes: int = Field(default=1, ge=1, le=1024)


class Options(Model):
    """What the options nodes have chained; None where no node has spoken."""

    network: NetworkOptions | None = None
    optimizer: OptimizerOptions | None = None
    objective: Objective | None = None
    text: TextOptions | None = None
    prior: Prior | None = None
    word: PivotalWord | None = None
    sampling: Sampling | None = None
    checkpointing: Checkpointing | None = None
    hardware: Hardware | None = None
