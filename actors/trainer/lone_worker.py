"""The worker of a training job that needs one alone."""

from actors.trainer.job import TrainingJob


class LoneWorker:
    """An actor that trains alone on CPUs, in Ray Train's local mode, in place of Ray Train's own processes.

    Beside a worker, Ray Train keeps five processes, each of which polls for signals a hundred times a second. Where
    training has all cores every poll interrupts it: on two cores steps took 10 % less while the five were stopped.
    """

    def ready(self) -> None:
        """Returns once the actor has started."""

    def train(self, job: TrainingJob) -> None:
        """Trains to the end, or until an error is written down."""
        # The driver imports this module, and needs no PyTorch.
        from ray.train import ScalingConfig
        from ray.train.torch import TorchTrainer

        from actors.trainer import loop

        TorchTrainer(lambda: loop.train(job), scaling_config=ScalingConfig(num_workers=0)).fit()
