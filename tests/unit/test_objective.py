"""The noise, the target and the loss of a step, against the formulas worked out by hand and against diffusers."""
import math

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.schedulers.scheduling_ddpm import rescale_zero_terminal_snr as diffusers_rescale
from torch import Tensor
from torch.nn import functional

from trainer import noise, objective
from trainer.options import Objective
from trainer.typed import SpecError

SHAPE = (3, 4, 16, 12)
SCHEDULER = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)
SCHEDULE: Tensor = SCHEDULER.alphas_cumprod
TERMINAL = objective.rescale_zero_terminal_snr(SCHEDULE)
EVERY = torch.arange(1000)
DEFAULT = Objective()


def generator(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(seed: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


# --- schedule, noised latents and targets


def test_noised_latents_and_velocity_are_those_of_diffusers() -> None:
    latents, fresh, timesteps = normal(1), normal(2), torch.tensor([0, 500, 999])
    assert torch.equal(objective.add_noise(latents, fresh, SCHEDULE, timesteps), SCHEDULER.add_noise(latents, fresh, timesteps))
    assert torch.equal(objective.velocity(latents, fresh, SCHEDULE, timesteps), SCHEDULER.get_velocity(latents, fresh, timesteps))


def test_noised_latents_and_velocity_by_hand() -> None:
    schedule, timesteps = torch.tensor([0.64, 0.36]), torch.tensor([1])
    latents, fresh = torch.tensor([[[[2.0]]]]), torch.tensor([[[[5.0]]]])
    assert objective.add_noise(latents, fresh, schedule, timesteps).item() == pytest.approx(0.6 * 2 + 0.8 * 5)
    assert objective.velocity(latents, fresh, schedule, timesteps).item() == pytest.approx(0.6 * 5 - 0.8 * 2)


def test_noised_latents_keep_their_type_and_their_noise_at_the_first_timestep() -> None:
    latents = torch.zeros(1, 4, 8, 8, dtype=torch.float16)
    noisy = objective.add_noise(latents, torch.ones_like(latents), torch.tensor([1 - 1e-5, 0.5]), torch.tensor([0]))
    assert noisy.dtype == torch.float16
    assert noisy.mean().item() == pytest.approx(math.sqrt(1e-5), rel=0.01)


def test_the_rescaled_schedule_ends_in_zero_begins_unchanged_and_is_diffusers_own() -> None:
    assert TERMINAL[-1] == 0
    assert TERMINAL[0].item() == pytest.approx(SCHEDULE[0].item(), rel=1e-6)
    assert (TERMINAL.diff() < 0).all()
    assert TERMINAL.dtype == SCHEDULE.dtype
    expected = (1 - diffusers_rescale(SCHEDULER.betas.double())).cumprod(0)
    torch.testing.assert_close(TERMINAL.double(), expected, rtol=1e-4, atol=1e-6)


def test_signal_to_noise_ratio_by_hand() -> None:
    ratios = objective.snr(torch.tensor([1.0, 0.8, 0.5, 0.0]), torch.tensor([0, 1, 2, 3, 1]))
    assert ratios.tolist() == pytest.approx([math.inf, 4, 1, 0, 4])


# --- weights


@pytest.mark.parametrize(
    ("weighting", "kind", "expected"),
    [
        # SNR 9, 1, 1/4
        ("min_snr", "epsilon", [5 / 9, 1, 1]),
        ("min_snr", "v", [5 / 10, 1 / 2, 0.25 / 1.25]),
        ("debiased", "epsilon", [1 / 3, 1, 2]),
        ("debiased", "v", [1 / 10, 1 / 2, 1 / 1.25]),
    ],
)
def test_weights_by_hand(weighting: str, kind: str, expected: list[float]) -> None:
    weights = objective.loss_weights(Objective(weighting=weighting), kind, torch.tensor([0.9, 0.5, 0.2]), torch.arange(3))
    assert weights is not None
    assert weights.tolist() == pytest.approx(expected, rel=1e-5)


def test_min_snr_weighs_the_clean_latents_error_the_same_for_epsilon_and_v() -> None:
    settings = Objective(weighting="min_snr", min_snr_gamma=5)
    ratio = objective.snr(SCHEDULE, EVERY)
    epsilon = objective.loss_weights(settings, "epsilon", SCHEDULE, EVERY) * ratio
    v = objective.loss_weights(settings, "v", SCHEDULE, EVERY) * (ratio + 1)
    torch.testing.assert_close(epsilon, v, rtol=1e-4, atol=0)
    torch.testing.assert_close(v, ratio.clamp(max=5), rtol=1e-4, atol=0)


def test_debiased_is_capped_at_a_ratio_of_a_thousand_and_else_untouched_on_the_schedule_of_stable_diffusion() -> None:
    weights = objective.loss_weights(Objective(weighting="debiased"), "epsilon", SCHEDULE, EVERY)
    assert weights[0].item() == pytest.approx(1 / math.sqrt(1000))
    torch.testing.assert_close(weights[1:], objective.snr(SCHEDULE, EVERY)[1:].rsqrt())


@pytest.mark.parametrize("weighting", ["min_snr", "debiased"])
@pytest.mark.parametrize("kind", ["epsilon", "v"])
@pytest.mark.parametrize("schedule", [TERMINAL, torch.linspace(1, 0, 1000)], ids=["zero terminal", "from 1 to 0"])
def test_weights_are_finite_where_there_is_no_signal_or_no_noise(weighting: str, kind: str, schedule: Tensor) -> None:
    weights = objective.loss_weights(Objective(weighting=weighting), kind, schedule, EVERY)
    assert weights.isfinite().all()
    assert (weights >= 0).all()


def test_without_weighting_there_are_no_weights() -> None:
    assert objective.loss_weights(DEFAULT, "epsilon", SCHEDULE, EVERY) is None


# --- losses


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_default_loss_is_the_mean_squared_error_to_the_bit(n: int, dtype: torch.dtype) -> None:
    prediction, target = normal(1)[:n].to(dtype), normal(2)[:n].to(dtype)
    loss = objective.denoising_loss(prediction, target, DEFAULT, SCHEDULE, torch.tensor([1, 500, 999][:n]), "epsilon")
    assert torch.equal(loss, functional.mse_loss(prediction.float(), target.float()))
    assert loss.dtype == torch.float32


def test_a_mask_of_ones_changes_nothing_and_one_of_zeros_takes_the_error_away() -> None:
    prediction, target, timesteps = normal(1), normal(2), torch.tensor([1, 500, 999])
    mask = torch.ones(3, 1, 16, 12)
    loss = objective.denoising_loss(prediction, target, DEFAULT, SCHEDULE, timesteps, "epsilon", mask)
    torch.testing.assert_close(loss, functional.mse_loss(prediction, target))
    mask[:, :, :8] = 0
    half = objective.denoising_loss(prediction, target, DEFAULT, SCHEDULE, timesteps, "epsilon", mask)
    torch.testing.assert_close(half, functional.mse_loss(prediction[:, :, 8:], target[:, :, 8:]) / 2)
    assert objective.denoising_loss(prediction, target, DEFAULT, SCHEDULE, timesteps, "epsilon", torch.zeros_like(mask)) == 0


def test_weights_multiply_each_examples_own_mean() -> None:
    schedule, timesteps = torch.tensor([0.9, 0.5]), torch.tensor([0, 1])
    prediction = torch.stack([torch.full((4, 8, 8), 3.0), torch.full((4, 8, 8), 2.0)])
    loss = objective.denoising_loss(prediction, torch.zeros_like(prediction), Objective(weighting="min_snr"), schedule, timesteps, "epsilon")
    assert loss.item() == pytest.approx((5 / 9 * 9 + 1 * 4) / 2)


@pytest.mark.parametrize("loss", ["huber", "smooth_l1"])
@pytest.mark.parametrize("difference", [0.0, 1e-4, 0.1, 1.0, 30.0])
def test_huber_losses_by_hand_in_float64(loss: str, difference: float) -> None:
    settings = Objective(loss=loss, huber_c=0.1, huber_schedule="constant")
    given = torch.full((1, 1, 1, 1), difference, dtype=torch.float32)
    value = objective.elementwise_loss(given, torch.zeros_like(given), settings, SCHEDULE, torch.tensor([500])).item()
    excess = math.sqrt(given.double().item() ** 2 + 0.1**2) - 0.1
    assert value == pytest.approx(2 * (0.1 if loss == "huber" else 1) * excess, rel=1e-5)


@pytest.mark.parametrize("loss", ["l2", "huber", "smooth_l1"])
@pytest.mark.parametrize("schedule", ["constant", "exponential", "snr"])
@pytest.mark.parametrize("huber_c", [1e-4, 0.1, 1.0])
def test_losses_and_their_gradients_are_finite_fp32_where_the_error_is_zero_or_large(loss: str, schedule: str, huber_c: float) -> None:
    settings = Objective(loss=loss, huber_c=huber_c, huber_schedule=schedule)
    prediction = torch.tensor([0.0, 1e-3, 500.0], dtype=torch.bfloat16).view(1, 3, 1, 1).repeat(2, 1, 1, 1).requires_grad_()
    losses = objective.elementwise_loss(prediction, torch.zeros_like(prediction), settings, TERMINAL, torch.tensor([0, 999]))
    losses.sum().backward()
    assert losses.dtype == torch.float32
    assert losses.isfinite().all()
    assert losses.shape == prediction.shape
    assert prediction.grad.isfinite().all()


@pytest.mark.parametrize("schedule", ["exponential", "snr"])
@pytest.mark.parametrize("alphas_cumprod", [SCHEDULE, TERMINAL], ids=["plain", "zero terminal"])
def test_scheduled_thresholds_fall_from_about_one_to_huber_c(schedule: str, alphas_cumprod: Tensor) -> None:
    thresholds = objective.huber_thresholds(Objective(loss="huber", huber_c=0.1, huber_schedule=schedule), alphas_cumprod, EVERY)
    assert (thresholds.diff() < 0).all()
    assert 0.9 < thresholds[0] <= 1
    assert 0.1 <= thresholds[-1] < 0.11


def test_scheduled_thresholds_by_hand() -> None:
    schedule = torch.tensor([0.9, 0.5, 0.2, 0.1])
    exponential = objective.huber_thresholds(Objective(huber_c=0.01, huber_schedule="exponential"), schedule, torch.tensor([2]))
    assert exponential.item() == pytest.approx(0.1)
    # sigma is 2 where abar is 0.2
    by_snr = objective.huber_thresholds(Objective(huber_c=0.1, huber_schedule="snr"), schedule, torch.tensor([2]))
    assert by_snr.item() == pytest.approx(0.9 / 9 + 0.1)


def test_the_threshold_is_each_examples_own() -> None:
    settings, timesteps = Objective(loss="huber", huber_c=0.1, huber_schedule="snr"), torch.tensor([10, 900])
    prediction, target = normal(1)[:2], normal(2)[:2]
    both = objective.denoising_loss(prediction, target, settings, SCHEDULE, timesteps, "epsilon")
    each = [objective.denoising_loss(prediction[i : i + 1], target[i : i + 1], settings, SCHEDULE, timesteps[i : i + 1], "epsilon") for i in (0, 1)]
    torch.testing.assert_close(both, (each[0] + each[1]) / 2)
    assert each[0] > 2 * each[1]


# --- noise


def test_default_draws_are_the_plain_normal_numbers_and_then_the_plain_timesteps() -> None:
    drawn = noise.draw(DEFAULT, SHAPE, 1000, generator())
    plain = generator()
    assert torch.equal(drawn.noise, torch.randn(SHAPE, generator=plain))
    assert torch.equal(drawn.timesteps, torch.randint(0, 1000, (3,), generator=plain))
    assert drawn.input_noise is drawn.noise


def test_everything_drawn_depends_on_the_generator_alone() -> None:
    settings = Objective(noise_offset=0.1, multires_noise=5, input_perturbation=0.1, timestep_distribution="logit_normal")
    torch.manual_seed(1)
    first = noise.draw(settings, SHAPE, 1000, generator())
    torch.manual_seed(2)
    second = noise.draw(settings, SHAPE, 1000, generator())
    other = noise.draw(settings, SHAPE, 1000, generator(8))
    for name in ("noise", "input_noise", "timesteps"):
        assert torch.equal(getattr(first, name), getattr(second, name))
        assert not torch.equal(getattr(first, name), getattr(other, name))


def test_noise_offset_moves_whole_channels_by_its_size() -> None:
    shape = (64, 4, 32, 32)
    plain = noise.draw_noise(DEFAULT, shape, generator())
    offset = noise.draw_noise(Objective(noise_offset=0.5), shape, generator()) - plain
    torch.testing.assert_close(offset, offset[..., :1, :1].expand(shape), rtol=0, atol=1e-5)
    levels = offset[..., 0, 0]
    assert levels.unique().numel() > 250
    assert levels.std().item() == pytest.approx(0.5, abs=0.06)
    assert levels.mean().item() == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize("shape", [(6, 4, 64, 48), (2, 4, 1, 8), (2, 4, 2, 2)])
def test_coarser_noises_leave_a_standard_deviation_of_one(shape: tuple[int, ...]) -> None:
    drawn = noise.draw_noise(Objective(multires_noise=10, multires_discount=0.9), shape, generator())
    assert drawn.shape == shape
    torch.testing.assert_close(drawn.std(dim=(1, 2, 3)), torch.ones(shape[0]))


def test_coarser_noises_make_neighbours_alike_and_the_more_so_the_higher_the_discount() -> None:
    def likeness(settings: Objective) -> float:
        drawn = noise.draw_noise(settings, (4, 4, 64, 64), generator())
        return (drawn[..., 1:] * drawn[..., :-1]).mean().item()

    plain, low, high = (likeness(each) for each in (DEFAULT, Objective(multires_noise=6), Objective(multires_noise=6, multires_discount=0.8)))
    assert abs(plain) < 0.02
    assert low > plain + 0.02
    assert high > low + 0.2


def test_the_second_coarser_noise_weighs_the_square_of_the_discount() -> None:
    first, second = (noise.draw_noise(Objective(multires_noise=count, multires_discount=0.5), SHAPE, generator()) for count in (1, 2))
    plain, height, width = generator(), *SHAPE[2:]
    total = torch.randn(SHAPE, generator=plain)
    for drawn, weight in ((first, 0.5), (second, 0.25)):
        shrink = 2 + 2 * torch.rand((), generator=plain).item()
        height, width = int(height / shrink), int(width / shrink)
        total = total + weight * functional.interpolate(torch.randn((*SHAPE[:2], height, width), generator=plain), SHAPE[2:], mode="bilinear")
        torch.testing.assert_close(drawn, total / total.std(dim=(1, 2, 3), keepdim=True))


def test_input_perturbation_leaves_the_targets_noise_and_the_timesteps_alone() -> None:
    shape = (8, 4, 32, 32)
    plain, perturbed = (noise.draw(each, shape, 1000, generator()) for each in (DEFAULT, Objective(input_perturbation=0.1)))
    assert torch.equal(perturbed.noise, plain.noise)
    assert torch.equal(perturbed.timesteps, plain.timesteps)
    added = perturbed.input_noise - perturbed.noise
    assert added.std().item() == pytest.approx(0.1, abs=0.002)
    assert (added * perturbed.noise).mean().item() == pytest.approx(0, abs=0.003)


# --- timesteps


@pytest.mark.parametrize("distribution", ["uniform", "logit_normal"])
def test_timesteps_stay_in_their_range_and_fill_it(distribution: str) -> None:
    settings = Objective(timestep_min=200, timestep_max=210, timestep_distribution=distribution)
    drawn = noise.draw_timesteps(settings, 5000, 1000, generator())
    assert drawn.dtype == torch.int64
    assert drawn.unique().tolist() == list(range(200, 210))


@pytest.mark.parametrize(("mean", "expected"), [(-10.0, 0), (10.0, 99)])
def test_an_extreme_logit_normal_stays_inside_a_base_with_few_timesteps(mean: float, expected: int) -> None:
    settings = Objective(timestep_distribution="logit_normal", timestep_mean=mean, timestep_deviation=10)
    drawn = noise.draw_timesteps(settings, 5000, 100, generator())
    assert (int(drawn.min()), int(drawn.max())) == (0, 99)
    assert (drawn == expected).float().mean() > 0.5


def test_logit_normal_timesteps_have_the_quantiles_of_their_normal_number() -> None:
    settings = Objective(timestep_distribution="logit_normal", timestep_mean=0.5, timestep_deviation=0.8)
    drawn = noise.draw_timesteps(settings, 20000, 1000, generator()).float()
    for share, z in ((0.15866, -1.0), (0.5, 0.0), (0.84134, 1.0)):
        assert drawn.quantile(share).item() == pytest.approx(1000 / (1 + math.exp(-(0.5 + 0.8 * z))), abs=12)


# --- what cannot be


def test_auto_is_what_the_base_gives_and_a_setting_is_stronger() -> None:
    assert [objective.prediction_kind(DEFAULT, base) for base in ("epsilon", "v")] == ["epsilon", "v"]
    assert objective.prediction_kind(Objective(prediction="v"), "epsilon") == "v"
    assert objective.prediction_kind(Objective(prediction="epsilon"), "v") == "epsilon"


@pytest.mark.parametrize(
    ("settings", "kind", "named"),
    [
        (Objective(zero_terminal_snr=True), "epsilon", "zero_terminal_snr"),
        (Objective(loss="huber", huber_c=2, huber_schedule="snr"), "epsilon", "huber_c"),
        (Objective(loss="smooth_l1", huber_c=2, huber_schedule="exponential"), "v", "huber_c"),
        (Objective(timestep_min=900), "epsilon", "timestep_min"),
    ],
)
def test_settings_that_contradict_one_another_are_refused_by_name(settings: Objective, kind: str, named: str) -> None:
    with pytest.raises(SpecError, match=named):
        objective.check(settings, kind, torch.linspace(0.99, 0.01, 900))


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        (DEFAULT, "epsilon"),
        (Objective(zero_terminal_snr=True, weighting="min_snr", loss="huber"), "v"),
        (Objective(loss="huber", huber_c=2, huber_schedule="constant", weighting="debiased", timestep_min=899), "epsilon"),
    ],
)
def test_settings_that_go_together_are_not_refused(settings: Objective, kind: str) -> None:
    objective.check(settings, kind, torch.linspace(0.99, 0.01, 900))


def test_a_base_on_a_schedule_that_ends_in_pure_noise_cannot_be_trained_on_epsilon() -> None:
    ending = objective.rescale_zero_terminal_snr(torch.linspace(0.99, 0.01, 1000))
    objective.check(DEFAULT, "v", ending)
    with pytest.raises(SpecError, match="ends in pure noise"):
        objective.check(DEFAULT, "epsilon", ending)
