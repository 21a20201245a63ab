"""The worker that trains alone, on CPUs: an actor that plays the part of Ray Train's processes."""

from actors.training_job import TrainingJob


class LoneWorker:
    """Runs a training job in Ray Train's local mode.

    Beside a worker, Ray Train keeps five processes, each of which looks for signals a hundred times a second. Where
    training has all cores every such look stops it: on two cores steps took 10 % less while the five were stopped.
    """

    def ready(self) -> None:
        """Returns once the actor is up."""

    def train(self, job: TrainingJob) -> None:
        """Trains to the end, or until it is written down why that cannot be."""
        from ray.train import ScalingConfig
        from ray.train.torch import TorchTrainer

        from actors import trainer

        TorchTrainer(lambda: trainer.train(job), scaling_config=ScalingConfig(num_workers=0)).fit()
