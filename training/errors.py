"""What can go wrong between text pairs and a model version that is served.

Me5Error
└── TrainingError
    ├── BadTrainConfig          a configuration file that can't be used; names the key
    ├── BadTrainingData         the text pairs, or their manifest, are missing or damaged
    ├── StartingModelMissing    the model to start from is not there
    ├── RunExists               the output folder holds another run
    ├── SettingsChanged         a run can only be continued with the settings and the data it was started with
    ├── TrainingDiverged        a loss or a gradient that is no number; the weights are as they were
    ├── CheckpointError         the checkpoint folder is not one that this project understands
    ├── EndpointFailed          the model that writes synthetic pairs can't be asked
    ├── DataError               an evaluation set is missing, damaged, or has nothing to measure
    ├── BadResult               a result of `evaluate` that can't be read, or can't be compared with another one
    ├── UnknownSystem           what is to be evaluated can't be opened, or doesn't fit the task
    ├── ServerFailed            a server that is to be evaluated doesn't answer, or refuses
    └── ExportError             the version can't be written, or its vectors are not the checkpoint's
"""

from service.errors import Me5Error


class TrainingError(Me5Error):
    """The root of this package's errors; the command line prints the sentence and exits with 2."""

    code = "training"


class BadTrainConfig(TrainingError):
    """A configuration file that can't be used; the message names the key."""


class BadTrainingData(TrainingError):
    """The text pairs, or their manifest, are missing or damaged."""


class StartingModelMissing(TrainingError):
    """The model to start from is not there."""


class RunExists(TrainingError):
    """The output folder holds another run."""


class SettingsChanged(TrainingError):
    """A run can only be continued with the settings and the data it was started with."""


class TrainingDiverged(TrainingError):
    """A loss or a gradient that is no number; the weights are as they were."""


class CheckpointError(TrainingError):
    """The checkpoint folder is not one that this project understands."""


class EndpointFailed(TrainingError):
    """The model that writes synthetic pairs can't be asked."""


class DataError(TrainingError):
    """An evaluation set is missing, damaged, or has nothing to measure."""


class BadResult(TrainingError):
    """A result of `evaluate` that can't be read, or can't be compared with another one."""


class UnknownSystem(TrainingError):
    """What is to be evaluated can't be opened, or doesn't fit the task."""


class ServerFailed(TrainingError):
    """A server that is to be evaluated doesn't answer, or refuses."""


class ExportError(TrainingError):
    """The version can't be written, or its vectors are not the checkpoint's."""
