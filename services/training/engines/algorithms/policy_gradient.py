"""An agent that learns to act by a policy gradient: proximal policy optimisation (Schulman et al., 2017)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from services.training.domain.algorithm_parameters import POLICY_GRADIENT
from services.training.engines.algorithms.environments import Array, Environment, environment_of
from services.training.engines.algorithms.files import config_of, files_of, table_of, with_weights
from services.training.engines.algorithms.interface import Algorithm, Json, Table, Trained, Watch
from services.training.engines.algorithms.reading import invalid
from services.training.engines.algorithms.steps import parameter_count, seeded, take_step

_NAME = "policy-gradient"
# Schulman et al., 2017, table 3: how far a step may change the chance of an action, and the weight of the value's loss.
_CLIP, _VALUE = 0.2, 0.5
# Weight of the entropy, which keeps the agent trying (Williams & Peng, 1991).
_ENTROPY = 0.01
# Schulman et al., 2016: lambda of the generalised advantage.
_TRACE = 0.95
# Episodes of a figure.
_EPISODES = 100


class Network(nn.Module):
    """Two layers each for the policy and the value of a state.

    Args:
        features: of an observation.
        actions: how many.
        width: of a layer.
    """

    def __init__(self, features: int, actions: int, width: int) -> None:
        super().__init__()
        self.policy = _layers(features, width, actions)
        self.value = _layers(features, width, 1)

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the actions, float[n, actions], and values, float[n]."""
        return self.policy(observations).log_softmax(-1), self.value(observations)[:, 0]


@dataclass(frozen=True)
class _Seen:
    """What the copies of an environment did, each array [steps, copies, ...].

    Attributes:
        observations, following: before and after each step; `following` is what was seen before a new episode began.
        actions, rewards: of each step.
        ended: the environment ended the episode.
        over: that, or it was as long as an episode may be.
    """

    observations: Array
    following: Array
    actions: Array
    rewards: Array
    ended: Array
    over: Array


class _Copies:
    """Copies of an environment, each in its episode."""

    def __init__(self, environment: Environment, count: int, longest: int, seed: int) -> None:
        self._environment, self._longest = environment, longest
        self.random = np.random.default_rng(seed)
        self._states = environment.begin(self.random, count)
        self._ages = np.zeros(count, np.int64)

    def act(self, choose: Callable[[Array], Array], steps: int) -> _Seen:
        """Takes some steps in each copy; an episode that is over is followed by a new one."""
        rows = [self._step(choose) for _ in range(steps)]
        return _Seen(*(np.stack(column) for column in zip(*rows, strict=True)))

    def _step(self, choose: Callable[[Array], Array]) -> tuple[Array, ...]:
        environment = self._environment
        before = environment.observe(self._states)
        actions = choose(before)
        states, rewards, ended = environment.step(self.random, self._states, actions)
        after = environment.observe(states)
        self._ages += 1
        over = ended | (self._ages >= self._longest)
        states[over] = environment.begin(self.random, int(over.sum()))
        self._ages[over] = 0
        self._states = states
        return before, after, actions, rewards, ended, over


def train(rows: Table, heldout: Table | None, parameters: Json, seed: int, watch: Watch) -> Trained:
    """Learns in the environment that the parameters describe; rows are not read."""
    environment = environment_of(parameters)
    longest = parameters["longest_episode"]
    with seeded(seed) as device:
        model = Network(environment.features, len(environment.actions), parameters["width"]).to(device)
        _learn(model, environment, parameters, seed, watch, device)
        agent = Agent(model.eval(), environment)
    random = np.random.default_rng(seed)
    anything = lambda seen: random.integers(len(environment.actions), size=len(seen))  # noqa: E731
    results = {
        "mean_return": mean_return(environment, agent.choose, longest, seed + 1),
        "baseline.mean_return": mean_return(environment, anything, longest, seed + 1),
        "steps": float(parameters["iterations"] * parameters["copies"] * parameters["horizon"]),
    }
    described = {name: parameters[name] for name in ("environment", "map", "transitions")}
    files = files_of(_NAME, {"width": parameters["width"]}, model, environment=described)
    return Trained(files, results, parameter_count(model))


class Agent:
    """A trained agent."""

    def __init__(self, model: Network, environment: Environment) -> None:
        self._model, self._environment = model, environment

    def predict(self, inputs: list[Any]) -> list[Any]:
        """States to `{action, score}`: the most likely action, and its probability.

        A state is `[position, speed, angle, angular speed]` of the cart and its pole, or the name of a state.

        Raises:
            EngineError: CONTENT_INVALID, one is no state.
        """
        states = []
        for number, given in enumerate(inputs, 1):
            try:
                states.append(self._environment.state_of(given))
            except (TypeError, ValueError) as error:
                raise invalid(number, "input", str(error)) from error
        if not states:
            return []
        chances = self._chances(self._environment.observe(np.stack(states)))
        names = self._environment.actions
        return [{"action": names[row.argmax()], "score": float(row.max())} for row in chances]

    def choose(self, observations: Array) -> Array:
        """The most likely actions, int64[n]."""
        return self._chances(observations).argmax(axis=1)

    @torch.no_grad()
    def _chances(self, observations: Array) -> Array:
        device = next(self._model.parameters()).device
        return self._model(torch.from_numpy(observations).to(device))[0].exp().cpu().numpy()


def load(files: dict[str, bytes]) -> Agent:
    config, environment = config_of(files, _NAME), environment_of(table_of(files, "environment.json"))
    model = Network(environment.features, len(environment.actions), config["width"])
    return Agent(with_weights(model, files), environment)


def mean_return(environment: Environment, choose: Callable[[Array], Array], longest: int, seed: int) -> float:
    """Mean sum of rewards of an episode; the same seed gives the same first states."""
    random = np.random.default_rng(seed)
    states = environment.begin(random, _EPISODES)
    total, running = np.zeros(_EPISODES), np.ones(_EPISODES, bool)
    for _ in range(longest):
        states, rewards, ended = environment.step(random, states, choose(environment.observe(states)))
        total += rewards * running
        running &= ~ended
        if not running.any():
            break
    return float(total.mean())


def advantages(rewards: Array, values: Array, following: Array, ended: Array, over: Array, discount: float) -> Array:
    """How much better than expected each action was (generalised advantage, Schulman et al., 2016, equation 16).

    Args:
        rewards: float[steps, copies].
        values, following: of the states before and after, likewise.
        ended: nothing follows the state after, likewise; its value counts as 0.
        over: the next row is of another episode, likewise.
        discount: of the reward of a step later.
    """
    surprise = rewards + discount * following * ~ended - values
    found = np.zeros_like(surprise)
    later = np.zeros(surprise.shape[1])
    for step in range(len(surprise) - 1, -1, -1):
        later = surprise[step] + discount * _TRACE * ~over[step] * later
        found[step] = later
    return found


def _learn(
    model: Network, environment: Environment, parameters: Json, seed: int, watch: Watch, device: torch.device
) -> None:
    copies = _Copies(environment, parameters["copies"], parameters["longest_episode"], seed)
    optimiser = torch.optim.Adam(model.parameters())
    iterations, taken = parameters["iterations"], 0

    @torch.no_grad()
    def drawn(observations: Array) -> Array:
        limits = model(torch.from_numpy(observations).to(device))[0].exp().cpu().numpy().cumsum(axis=1)
        return np.minimum((limits <= copies.random.random((len(limits), 1))).sum(axis=1), limits.shape[1] - 1)

    for iteration in range(iterations):
        watch.stop_if_cancelled()
        seen = copies.act(drawn, parameters["horizon"])
        before, actions, chances, gains, values = _judged(model, seen, parameters["discount"], device)
        rate = parameters["learning_rate"] * (1 - iteration / iterations)
        loss = 0.0
        for _ in range(parameters["epochs"]):
            for some in torch.from_numpy(copies.random.permutation(len(gains))).split(parameters["batch_size"]):
                chosen = some.to(device)
                found = _loss(model, before[chosen], actions[chosen], chances[chosen], gains[chosen], values[chosen])
                loss = take_step(model, optimiser, found, rate, taken)
                taken += 1
        over = max(1, int(seen.over.sum()))
        figures = {"loss": loss, "learning_rate": rate, "reward_per_episode": float(seen.rewards.sum()) / over}
        watch.metrics(taken, figures)
        watch.progress((iteration + 1) / iterations, f"iteration {iteration + 1} of {iterations}")


@torch.no_grad()
def _judged(model: Network, seen: _Seen, discount: float, device: torch.device) -> tuple[Tensor, ...]:
    """Observations, actions, their log-probabilities, normalised advantages and values to learn, one after another."""
    observations = torch.from_numpy(seen.observations).to(device).flatten(0, 1)
    following = torch.from_numpy(seen.following).to(device).flatten(0, 1)
    actions = torch.from_numpy(seen.actions).to(device).flatten()
    chances, values = model(observations)
    shape = seen.rewards.shape
    before, after = (one.cpu().double().numpy().reshape(shape) for one in (values, model(following)[1]))
    gains = advantages(seen.rewards, before, after, seen.ended, seen.over, discount)
    wanted = torch.from_numpy((gains + before).astype(np.float32)).to(device).flatten()
    normal = torch.from_numpy(((gains - gains.mean()) / (gains.std() + 1e-8)).astype(np.float32)).to(device).flatten()
    return observations, actions, chances.gather(1, actions[:, None])[:, 0], normal, wanted


def _loss(model: Network, before: Tensor, actions: Tensor, chances: Tensor, gains: Tensor, wanted: Tensor) -> Tensor:
    """The clipped objective, the error of the value and the entropy (Schulman et al., 2017, equations 7 and 9)."""
    now, values = model(before)
    ratio = (now.gather(1, actions[:, None])[:, 0] - chances).exp()
    gain = torch.minimum(ratio * gains, ratio.clamp(1 - _CLIP, 1 + _CLIP) * gains).mean()
    entropy = -(now.exp() * now).sum(1).mean()
    return -gain + _VALUE * (values - wanted).square().mean() - _ENTROPY * entropy


def _layers(inputs: int, width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, outputs)
    )


ALGORITHM = Algorithm(
    name=_NAME,
    task="reinforcement-learning",
    framework="pytorch",
    parameters=POLICY_GRADIENT,
    train=train,
    load=load,
)
