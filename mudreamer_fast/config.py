"""Every number of a run, typed and explained: frozen dataclasses that become the command line.

Sources of the defaults: MuDreamer (arXiv 2405.15083) and DreamerV3 (arXiv 2301.04104v1).
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass, field
from typing import Literal

SizeName = Literal["XS", "S", "M", "L", "XL"]
ActionChoice = Literal["sample", "mode"]
"""Actions drawn from the policy, or its most likely ones."""
Precision = Literal["float32", "tf32", "bfloat16"]
BackendName = Literal["auto", "reference", "compiled", "fused", "persistent"]


IMAGE_SIZES = (64, 84, 96, 128)
"""Heights and widths of images that the encoder is checked on."""


class ConfigError(ValueError):
    """A setting that cannot be run; the message is shown to the user as it is."""


@dataclass(frozen=True)
class Dimensions:
    """Widths and depths of one model."""

    deter: int
    """D, units of the recurrent state."""
    hidden: int
    """U, units of every hidden layer."""
    conv: int
    """c, channels of the first convolution."""
    layers: int
    """Hidden layers of each head, the actor and the critic."""


SIZES: dict[SizeName, Dimensions] = {
    "XS": Dimensions(deter=256, hidden=256, conv=24, layers=1),
    "S": Dimensions(deter=512, hidden=512, conv=32, layers=2),
    "M": Dimensions(deter=1024, hidden=640, conv=48, layers=3),
    "L": Dimensions(deter=2048, hidden=768, conv=64, layers=4),
    "XL": Dimensions(deter=4096, hidden=1024, conv=96, layers=5),
}


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _require_finite(owner: object) -> None:
    for name, value in vars(owner).items():
        finite = not isinstance(value, float) or math.isfinite(value)
        _require(finite, f"{name} must be a finite number, got {value}")


def _require_positive(owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        _require(value is None or value > 0, f"{name} must be positive, got {value}")


@dataclass(frozen=True)
class ModelConfig:
    """The world model: what it is made of and how it is trained."""

    size: SizeName = "S"
    """Preset of widths and depths; the four fields below override it one by one."""
    deter: int | None = None
    """Units of the recurrent state; None takes the size's."""
    hidden: int | None = None
    """Units of every hidden layer; None takes the size's."""
    conv: int | None = None
    """Channels of the first convolution; None takes the size's."""
    layers: int | None = None
    """Hidden layers of each head, the actor and the critic; None takes the size's."""
    groups: int = 32
    """G, number of categorical latents."""
    classes: int = 32
    """C, classes of each categorical latent."""
    unimix: float = 0.01
    """Share of the uniform distribution mixed into every categorical."""
    bins: int = 255
    """Bins of the two-hot reward and value distributions, over symlog [-20, 20]."""
    batch_norm: Literal["posterior", "encoder", "both", "none"] = "posterior"
    """Where batch norm stands in place of layer norm; without any, nothing prevents collapse."""
    batch_norm_statistics: Literal["step", "running"] = "step"
    """What the posterior's batch norm normalises with in training: the rows of one time step,
    or the running statistics."""
    batch_norm_update: Literal["pooled", "step"] = "pooled"
    """Running statistics move once per batch with the statistics pooled over its steps, or at
    every step."""
    batch_norm_momentum: float = 0.1
    """Weight of the newest statistics in the running ones."""
    norm_eps: float = 1e-3
    """Added to the variance in layer norm and batch norm."""
    decoder: bool = False
    """Also train a decoder on stopped gradients, for pictures of what the model knows."""
    reconstruction: bool = False
    """Learn from a decoder of all that is observed, as DreamerV3 does and MuDreamer does not."""
    value_predictor: bool = True
    """Predict the values of the replayed steps; off is the paper's ablation."""
    action_predictor: bool = True
    """Predict the previous action from features and previous state; off is the paper's ablation."""
    free_nats: float = 1.0
    """The KL divergence below which neither KL term has a gradient."""
    prediction_scale: float = 1.0
    """Weight of the reward, continue, value, action and reconstruction losses."""
    dynamics_scale: float = 0.95
    """Weight of the KL that moves the prior towards the posterior."""
    representation_scale: float = 0.05
    """Weight of the KL that moves the posterior towards the prior."""
    slow_value_decay: float = 0.98
    """Decay of the moving average of the value head that bootstraps the value targets."""
    learning_rate: float = 1e-4
    """Adam's step size for the world model."""
    adam_eps: float = 1e-8
    """Adam's epsilon for the world model."""
    clip_norm: float = 1000.0
    """Largest global gradient norm of the world model."""

    def __post_init__(self) -> None:
        _require_finite(self)
        _require(self.size in SIZES, f"size must be one of {', '.join(SIZES)}, got {self.size!r}")
        _require_positive(
            self, "deter", "hidden", "conv", "layers", "groups", "bins", "norm_eps",
            "learning_rate", "adam_eps", "clip_norm",
        )  # fmt: skip
        _require(self.classes > 1, f"classes must be at least 2, got {self.classes}")
        _require(self.bins % 2 == 1, f"bins must be odd, so that one bin is zero, got {self.bins}")
        _require(0 <= self.unimix < 1, f"unimix must be in [0, 1), got {self.unimix}")
        for name in ("batch_norm_momentum", "slow_value_decay"):
            value = getattr(self, name)
            _require(0 <= value <= 1, f"{name} must be in [0, 1], got {value}")
        for name in (
            "free_nats", "prediction_scale", "dynamics_scale", "representation_scale",
        ):  # fmt: skip
            value = getattr(self, name)
            _require(value >= 0, f"{name} must not be negative, got {value}")

    @property
    def dimensions(self) -> Dimensions:
        """The size's dimensions with the overrides applied."""
        chosen = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(Dimensions)
            if getattr(self, f.name) is not None
        }
        return dataclasses.replace(SIZES[self.size], **chosen)


@dataclass(frozen=True)
class BehaviourConfig:
    """Actor and critic, learned on imagined rollouts."""

    horizon: int = 15
    """H, imagined steps."""
    discount: float = 0.997
    """Discount of one policy step."""
    lam: float = 0.95
    """Lambda of the lambda-returns, imagined and replayed alike."""
    actor_gradient: Literal["auto", "dynamics", "reinforce"] = "auto"
    """Gradient of the actor: through the learned dynamics, or REINFORCE; auto takes dynamics for
    continuous actions and REINFORCE for discrete ones."""
    entropy_scale: float = 3e-4
    """Weight of the policy's entropy in the actor loss."""
    return_decay: float = 0.99
    """Decay of the moving averages of the 5th and 95th return percentiles."""
    slow_critic_decay: float = 0.98
    """Decay of the moving average of the critic."""
    slow_critic_scale: float = 1.0
    """Weight of the critic's loss towards its own moving average."""
    actor_learning_rate: float = 3e-5
    """Adam's step size for the actor."""
    critic_learning_rate: float = 3e-5
    """Adam's step size for the critic."""
    adam_eps: float = 1e-5
    """Adam's epsilon for actor and critic."""
    clip_norm: float = 100.0
    """Largest global gradient norm of the actor, and of the critic."""

    def __post_init__(self) -> None:
        _require_finite(self)
        _require_positive(
            self, "horizon", "actor_learning_rate", "critic_learning_rate", "adam_eps", "clip_norm"
        )
        for name in ("discount", "lam", "return_decay", "slow_critic_decay"):
            value = getattr(self, name)
            _require(0 <= value <= 1, f"{name} must be in [0, 1], got {value}")
        for name in ("entropy_scale", "slow_critic_scale"):
            value = getattr(self, name)
            _require(value >= 0, f"{name} must not be negative, got {value}")


@dataclass(frozen=True)
class EnvConfig:
    """The task and how it is seen."""

    task: str = "dmc/walker_walk"
    """dmc/NAME, a task that `mudreamer-fast info` lists; atari/NAME, a game; crafter/reward;
    gym:ID, any of Gymnasium's environments; one's own by gym:MODULE:ID, gym:MODULE:FUNCTION or
    dmc:MODULE:FUNCTION. `mudreamer-fast check-env` plays it."""
    observation: Literal["pixels", "vector", "both"] = "pixels"
    """What the agent sees: images, the simulator's state vector, or both. Where an environment of
    Gymnasium's shows no image, one is rendered."""
    action_repeat: int = 2
    """Simulator steps per policy step; rewards are summed over them."""
    num_envs: int = 4
    """Environments that act side by side."""
    image_size: int = 64
    """Height and width of the images: 64, 84, 96 or 128. Four convolutions of stride 2 see them, at
    128 five, the last with 16 times the channels of the first."""
    image_width: int | None = None
    """Their width, one of the same sizes, where they are not square."""
    camera: int | None = None
    """Camera that films the robot; None takes the suite's usual one (2 for quadruped, else 0)."""
    backend: Literal["auto", "envpool", "dm_control", "sync", "async"] = "auto"
    """Simulator front end; auto takes EnvPool where it imports and has the task, dm_control
    otherwise. Gymnasium's environments step in turn in this process (sync) or side by side in
    processes of their own (async, which auto takes for more than one)."""
    render_profile: Literal["auto", "reference", "light", "flat"] = "auto"
    """Rendering quality; auto takes reference on a GPU and light in software."""
    background: Literal["none", "video", "noise", "color"] = "none"
    """What stands behind the robot in the images, in place of sky and floor: these, a video, new
    noise in every image, or a colour; another video or colour in each episode."""
    background_videos: str | None = None
    """Folder with the folders train and eval, or with videos of which every fifth is kept for
    evaluation, or a text file with a path a line; None takes videos that the program draws."""
    background_set: Literal["train", "evaluation"] = "train"
    """Which of the videos are shown; scores are always played before those for evaluation."""
    background_mask: Literal["blue", "chroma"] = "blue"
    """What counts as background: pixels with more blue than red and than green, as in the paper,
    which takes some of a blue robot too; or sky and floor alone, which are drawn in green first."""
    background_start: Literal["first", "random"] = "first"
    """The frame of its video that an episode begins with."""
    background_advance: Literal["observation", "simulator_step"] = "observation"
    """What a video moves on with; where it ends, another one follows."""
    background_grey: bool = False
    """Leave the colours of the videos out."""
    background_max_videos: int = 100
    """Videos that are taken, the first ones by name."""
    background_max_frames: int = 1000
    """Frames that are taken of each, from its beginning."""
    color_shift: float = 0.0
    """How far each colour of the robot and its world may be from its own, drawn for each episode:
    0.1, 0.2 and 0.3 are the Distracting Control Suite's easy, medium and hard. On dm_control."""
    camera_shift: float = 0.0
    """How far the camera may be from its own place, turn and distance, likewise."""
    moving_shifts: bool = False
    """Colours and camera move during an episode, from where they were drawn."""
    atari_noops: int = 30
    """Frames for which Atari's games do nothing at first: up to so many, drawn for each episode."""
    atari_sticky: float = 0.0
    """Chance that a game takes the action of the frame before once more."""
    atari_life_loss: bool = False
    """A life that is lost is an end to learn from (is_terminal), though the game goes on."""
    atari_sign_rewards: bool = False
    """Learn from the signs of a game's rewards alone; scores are of the rewards themselves."""
    simulator_threads: int | None = None
    """Threads that EnvPool simulates on; None takes one for each core, but no more than num_envs.
    dm_control has a process for each environment."""

    def __post_init__(self) -> None:
        _require_finite(self)
        _require_positive(
            self,
            *("action_repeat", "num_envs", "simulator_threads", "background_max_videos"),
            "atari_noops",
        )
        for name in ("color_shift", "camera_shift", "atari_sticky"):
            value = getattr(self, name)
            _require(0 <= value <= 1, f"{name} must be in [0, 1], got {value}")
        _require(
            self.background_max_frames >= 2,
            f"background_max_frames must be at least 2, got {self.background_max_frames}",
        )
        _require(
            self.background == "video" or self.background_videos is None,
            f"background_videos needs background video, got {self.background}",
        )
        for name, side in (("image_size", self.image_size), ("image_width", self.image_shape[1])):
            sizes = ", ".join(map(str, IMAGE_SIZES))
            _require(side in IMAGE_SIZES, f"{name} must be one of {sizes}, got {side}")
        suite = re.match(r"dmc/.|atari/.|crafter/.|gym:.|dmc:[^:]+:[^:]+$", self.task)
        _require(
            suite is not None,
            "task must read dmc/NAME, atari/NAME, crafter/NAME, gym:ID, gym:MODULE:ID or "
            f"dmc:MODULE:FUNCTION, such as dmc/walker_walk or gym:CartPole-v1, got {self.task!r}",
        )

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.image_size, self.image_size if self.image_width is None else self.image_width


@dataclass(frozen=True)
class ReplayConfig:
    """The replay buffer and what is drawn from it."""

    capacity_steps: int = 1_000_000
    """Policy steps kept, over all environments; the oldest go first. Memory grows as it fills."""
    batch_size: int = 16
    """B, sequences in a batch."""
    batch_length: int = 64
    """T, steps in a sequence."""
    gather_threads: int = 2
    """Threads that copy a batch out of the buffer."""
    batches_ahead: int = 2
    """Batches that are drawn and copied while one is learned from; 0 waits for each copy."""
    storage: Literal["memory", "disk"] = "memory"
    """disk keeps the steps in the run folder: a crash costs at most those since the last flush,
    checkpoints need not hold them, and they may be more than fit in memory."""
    flush_every_seconds: float = 30.0
    """Seconds between two flushes of storage on disk."""

    def __post_init__(self) -> None:
        _require_finite(self)
        _require_positive(
            self, "batch_size", "batch_length", "gather_threads", "flush_every_seconds"
        )
        _require(
            self.batches_ahead >= 0, f"batches_ahead must not be negative, got {self.batches_ahead}"
        )
        _require(
            self.capacity_steps > self.batch_length,
            f"capacity_steps must exceed batch_length ({self.batch_length}), "
            f"got {self.capacity_steps}",
        )


@dataclass(frozen=True)
class TrainConfig:
    """How long, how often, and on what."""

    env_steps: int = 1_000_000
    """Simulator steps to train for, action repeats counted."""
    prefill_steps: int = 2_500
    """Policy steps taken at random, over all environments, before training starts."""
    train_ratio: float = 512.0
    """Replayed steps trained on per policy step."""
    eval_every_env_steps: int = 50_000
    """Simulator steps between evaluations during training; 0 leaves only the last one."""
    eval_episodes: int = 10
    """Episodes of an evaluation, with the same seeds every time."""
    eval_policy: ActionChoice = "sample"
    """Actions of an evaluation: sampled, as for the scores that MuDreamer and DreamerV3 publish,
    or the policy's mode."""
    log_every_seconds: float = 10.0
    """Seconds between two lines of metrics."""
    checkpoint_every_seconds: float = 120.0
    """Seconds between checkpoints, or longer where one holds the run up for more than a hundredth
    of that; one is always written at the start, at the end, and when anything else ends the run."""
    keep_checkpoints: int = 2
    """The newest checkpoints that stay, each complete; one that is damaged is passed over."""
    save_replay: bool = True
    """Write the replay buffer into the checkpoint, so that a resumed run goes on with it."""
    exact_resume: bool = False
    """Bring the environments back on resume by taking all their actions again, which takes as long
    as simulating them did; the run then equals the uninterrupted one bitwise, on the same machine,
    where acting and learning do not overlap."""
    max_minutes: float | None = None
    """Stop training after this many minutes, evaluate and save; None trains for env_steps."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N; auto takes the GPU where there is one."""
    backend: BackendName = "auto"
    """Implementation of the model's operations: plain PyTorch, that under torch.compile, Triton
    kernels (CUDA only), or these with a whole sequence filtered in one launch; auto is fused on a
    GPU, less the operations that do not agree with the reference there, and reference elsewhere."""
    cuda_graph: Literal["auto", "on", "off"] = "auto"
    """Record a whole update, and a whole step of acting, as one CUDA graph each, and launch that
    instead of a thousand kernels; auto does with the fused operations on a GPU, and
    goes on without where that fails."""
    precision: Precision = "float32"
    """Operands of matrix products and convolutions in updates: float32, or tf32 or bfloat16 with 10
    or 7 of its 23 bits, which a GPU multiplies several times as fast. All else stays float32. On a
    CPU operands are rounded as much, to see what that does to learning."""
    threads: int | None = None
    """CPU threads for PyTorch; None leaves its own choice, less a core where overlap is on."""
    overlap: Literal["auto", "on", "off"] = "auto"
    """Act and simulate while the updates of the steps before are under way, with the weights from
    before them; auto does on a GPU, or where PyTorch's threads leave a core."""
    tracker: Literal["none", "wandb", "mlflow", "trackio"] = "none"
    """Service that the metrics go to as well, as its own environment variables say where."""
    tracker_project: str = "mudreamer-fast"
    """Project, or experiment, of the run there."""
    seed: int = 0
    """Seed of everything drawn: weights, environments, replay, latents and actions."""

    def __post_init__(self) -> None:
        _require_finite(self)
        _require_positive(
            self, "env_steps", "train_ratio", "eval_episodes", "log_every_seconds",
            "checkpoint_every_seconds", "keep_checkpoints", "max_minutes", "threads",
        )  # fmt: skip
        for name in ("prefill_steps", "eval_every_env_steps", "seed"):
            value = getattr(self, name)
            _require(value >= 0, f"{name} must not be negative, got {value}")


@dataclass(frozen=True)
class Config:
    """A whole run."""

    env: EnvConfig = field(default_factory=EnvConfig)
    """The task and how it is seen."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The world model."""
    behaviour: BehaviourConfig = field(default_factory=BehaviourConfig)
    """Actor and critic."""
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    """The replay buffer."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """How long, how often, and on what."""

    @property
    def updates_per_policy_step(self) -> float:
        """Gradient updates per policy step that the train ratio asks for."""
        return self.train.train_ratio / (self.replay.batch_size * self.replay.batch_length)


PRESETS: dict[str, tuple[str, Config]] = {
    "dmc_vision": (
        "The paper's DeepMind Control setting from pixels: size S, 10^6 steps. Wants a GPU.",
        Config(),
    ),
    "dmc_vision_backgrounds": (
        "The same behind which videos play, as the paper has them.",
        Config(
            env=EnvConfig(
                background="video",
                background_advance="simulator_step",
                background_max_frames=600,
            )
        ),
    ),
    "dmc_vision_dreamerpro": (
        "The same with videos as DreamerPro and TPC have them.",
        Config(env=EnvConfig(background="video", background_start="random")),
    ),
    "dmc_vision_dreamerv3": (
        "DreamerV3 in the same code: it reconstructs, predicts neither values nor actions.",
        Config(
            model=ModelConfig(
                batch_norm="none",
                reconstruction=True,
                value_predictor=False,
                action_predictor=False,
                dynamics_scale=0.5,
                representation_scale=0.1,
            )
        ),
    ),
    "dmc_proprio": (
        "MuDreamer from the simulator's state vectors.",
        Config(env=EnvConfig(observation="vector")),
    ),
    "atari100k": (
        "A game of the Atari 100k benchmark: 400,000 frames, train ratio 1024. Wants a GPU.",
        Config(
            env=EnvConfig(task="atari/pong", action_repeat=4, num_envs=1),
            train=TrainConfig(env_steps=400_000, train_ratio=1024.0),
        ),
    ),
    "crafter": (
        "Crafter's open world: 1e6 steps, train ratio 512. Wants a GPU.",
        Config(
            env=EnvConfig(task="crafter/reward", action_repeat=1, num_envs=1),
            train=TrainConfig(train_ratio=512.0),
        ),
    ),
    "quick": (
        "A small model that learns from pixels on two CPU cores in a quarter of an hour.",
        Config(
            env=EnvConfig(task="dmc/cheetah_run", action_repeat=4, render_profile="light"),
            model=ModelConfig(
                deter=128,
                hidden=128,
                conv=8,
                layers=1,
                groups=8,
                classes=8,
                batch_norm="both",
                learning_rate=8e-4,
            ),
            behaviour=BehaviourConfig(
                horizon=10,
                discount=0.98,
                actor_learning_rate=3e-4,
                critic_learning_rate=3e-4,
                adam_eps=1e-8,
            ),
            replay=ReplayConfig(capacity_steps=100_000, batch_size=8, batch_length=16),
            train=TrainConfig(
                env_steps=100_000,
                prefill_steps=1_000,
                train_ratio=32.0,
                eval_every_env_steps=50_000,
                max_minutes=18.0,
                overlap="on",
            ),
        ),
    ),
}
"""Named configurations with a line on what each is for."""
