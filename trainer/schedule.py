"""The learning rate over the steps, as a pure function: nothing of it is state. Shapes as diffusers.optimization names and draws them."""
import math

from .options import OptimizerOptions, pieces


def warmup_steps(options: OptimizerOptions, total: int) -> int:
    """How many of `total` steps the warm-up takes."""
    return round(options.warmup * total) if options.warmup < 1 else int(options.warmup)


def factor(options: OptimizerOptions, step: int, total: int) -> float:
    """What the learning rate is multiplied by at the step after `step` steps, of `total`.

    The warm-up rises by (step + 1) / (warm-up steps + 1), so that its first step is not lost at a rate of zero.
    """
    warmup = warmup_steps(options, total)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    match options.schedule:
        case "constant":
            return 1.0
        case "linear":
            return 1.0 - done
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        case "cosine_with_restarts":
            return 0.0 if done >= 1 else 0.5 * (1 + math.cos(math.pi * (done * options.cycles % 1)))
        case "polynomial":
            return float((1.0 - done) ** options.power)
        case "piecewise_constant":
            before, after = pieces(options.step_rules)
            return next((value for until, value in before if step < until), after)
