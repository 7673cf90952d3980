"""A training that is asked to stop: by a scheduler, a closed terminal or Ctrl-C, wherever it is."""

import functools
import os
import signal

import pytest
from small_runs import MONITORED, arguments, environment_of_a_desk, in_child, rows, train

from netprism.callbacks import GatingEntropy
from netprism.cli.main import main
from netprism.lightning_modules import Classifier

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* not empty")  # of the run that goes on
PLACES = {
    "a step": (Classifier, "training_step"),
    "a validation": (Classifier, "validation_step"),
    "a monitor": (GatingEntropy, "measure"),
}


@pytest.fixture(autouse=True)
def at_a_desk(tmp_path, monkeypatch):
    environment_of_a_desk(monkeypatch, tmp_path)
    monkeypatch.setattr("netprism.figures.gating_entropy.draw", lambda *_: [])  # figures take seconds


def signalled(number, place, epochs):
    """A training that gets the signal in its second epoch."""
    owner, name = PLACES[place]
    work = getattr(owner, name)

    @functools.wraps(work)
    def interrupted(self, *args):
        epoch = args[-1] if place == "a monitor" else self.current_epoch
        if epoch == 1:
            os.kill(os.getpid(), number)
        return work(self, *args)

    setattr(owner, name, interrupted)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    main(["fit", *arguments("--ckpt_path=last", epochs=epochs, monitor=MONITORED)])


@functools.cache
def uninterrupted():
    return rows(train(epochs=3, monitor=MONITORED))


@pytest.mark.parametrize(
    ("number", "place", "status"),
    [
        (signal.SIGHUP, "a step", 128 + signal.SIGHUP),
        (signal.SIGTERM, "a monitor", 128 + signal.SIGTERM),
        (signal.SIGINT, "a validation", 130),
    ],
)
def test_a_training_that_is_asked_to_stop_goes_on_to_the_same_curves(number, place, status):
    folder = train(epochs=1, monitor=MONITORED)
    assert in_child(functools.partial(signalled, number, place, 3)) == status
    assert not list(folder.rglob("*.part*"))
    assert train("--ckpt_path=last", epochs=3, monitor=MONITORED) == folder
    assert rows(folder) == uninterrupted()


def test_nohup_is_heeded():
    """A training whose terminal may close goes on."""

    def work():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        step = Classifier.training_step

        def hung_up(self, batch):
            os.kill(os.getpid(), signal.SIGHUP)
            return step(self, batch)

        Classifier.training_step = hung_up
        train(epochs=1)

    assert in_child(work) == 0
