from .analysis.export import export_program
from .analysis.minimize import Minimized, minimize, refit
from .analysis.transform import simplify
from .analysis.verify import VerificationReport, compare_oracle, compare_programs, every_input, verify
from .config import DataConfig, ExportOptions, FitConfig, ShapeConfig, TrainSettings
from .network.compile import from_program
from .network.convert import to_program
from .network.model import ProgramTransformer
from .network.reference import load_reference
from .network.spec import NetworkSpec
from .program.emitting.emit import to_python
from .program.files import load_program, save_program
from .program.import_python import import_python
from .program.interpret import Execution, Interpreter
from .program.ir import Lookup, Program, Select
from .program.tables import Classifier, Embeddings
from .tasks.dataset import Dataset
from .tasks.load import load_data
from .tasks.rasp import TASKS
from .training.fit import Fitted, fit, spec_of
from .training.run import TrainedNetworks, train
from .training.sweep import SweepRow, sweep

__all__ = [
    "TASKS",
    "Classifier",
    "DataConfig",
    "Dataset",
    "Embeddings",
    "Execution",
    "ExportOptions",
    "FitConfig",
    "Fitted",
    "Interpreter",
    "Lookup",
    "Minimized",
    "NetworkSpec",
    "Program",
    "ProgramTransformer",
    "Select",
    "ShapeConfig",
    "SweepRow",
    "TrainSettings",
    "TrainedNetworks",
    "VerificationReport",
    "compare_oracle",
    "compare_programs",
    "every_input",
    "export_program",
    "fit",
    "from_program",
    "import_python",
    "load_data",
    "load_program",
    "load_reference",
    "minimize",
    "refit",
    "save_program",
    "simplify",
    "spec_of",
    "sweep",
    "to_program",
    "to_python",
    "train",
    "verify",
]
