"""Each step alone, as a pure function of arrays: `LossLaw("nd").fit(n, d, loss)`, `AccuracyLaw("sigmoid").fit(loss,
accuracy)`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from lmlab.errors import UserError
from lmlab.methods.ladder.config import AccuracyForm, LossForm
from lmlab.methods.ladder.fitting import accuracy as acc
from lmlab.methods.ladder.fitting.fit import first_step_values, fit_first_step, fit_second_step
from lmlab.methods.ladder.fitting.laws import FORMS
from lmlab.methods.ladder.tables.table import Floats


@dataclass(frozen=True)
class LossLaw:
    """A law of parameters and tokens (`nd`), or of compute (`flops`).

    Attributes:
        parameters: by name, once it is fitted.
        error: mean absolute relative error on the fitted points.
        converged: whether the optimization moved and ended.
    """

    form: LossForm = "nd"
    parameters: dict[str, float] | None = None
    error: float | None = None
    converged: bool | None = None

    def fit(
        self,
        n: ArrayLike,
        d: ArrayLike,
        loss: ArrayLike,
        flops: ArrayLike | None = None,
        starts: str = "grid",
        delta: float | None = 1e-3,
    ) -> LossLaw:
        """Fit it to one point a run, all [R].

        Arguments:
            flops: of each run; 6 N D by default.
            starts: `grid`, or `paper` for the single start of the reference.
            delta: of Huber's loss, in logarithms; None for least squares.

        Raises:
            UserError: fewer points than parameters, or values that are not positive.
        """
        x_3R, y = _logs(n, d, flops), np.asarray(loss, dtype=float)
        if (
            x_3R.shape[1] < len(FORMS[self.form].names)
            or not np.isfinite(x_3R).all()
            or not (np.isfinite(y) & (y > 0)).all()
        ):
            raise UserError(
                f"{FORMS[self.form].formula} needs {len(FORMS[self.form].names)} points with positive, finite values."
            )
        found = fit_first_step(self.form, x_3R, y[None], None, delta, starts)
        values = first_step_values(self.form, found.parameters_BP, x_3R)[0]
        names = dict(zip(FORMS[self.form].names, map(float, found.parameters_BP[0]), strict=True))
        return LossLaw(self.form, names, float(np.abs(values / y - 1).mean()), bool(found.converged_B[0]))

    def predict(self, n: ArrayLike, d: ArrayLike, flops: ArrayLike | None = None) -> Floats:
        """The loss at some places, of the shape of `n`."""
        if self.parameters is None:
            raise UserError("The law has not been fitted.")
        return first_step_values(self.form, np.array([list(self.parameters.values())]), _logs(n, d, flops))[0]


@dataclass(frozen=True)
class AccuracyLaw:
    """Accuracy as a function of a loss: `sigmoid`, `logistic` (from chance to 1), `log_sigmoid` or `mc`; attributes as
    those of `LossLaw`.
    """

    form: AccuracyForm = "sigmoid"
    parameters: dict[str, float] | None = None
    error: float | None = None
    converged: bool | None = None

    def fit(
        self, loss: ArrayLike, accuracy: ArrayLike, chance: float = 0.25, anchor: bool = True, starts: str = "grid"
    ) -> AccuracyLaw:
        """Fit it to checkpoints, both [K]; `anchor` appends the point (loss 0, accuracy 1).

        Raises:
            UserError: fewer than five points, or values out of their range.
        """
        x, y = np.asarray(loss, dtype=float), np.asarray(accuracy, dtype=float)
        if len(x) < 5 or not (np.isfinite(x) & (x > 0) & np.isfinite(y) & (y >= 0) & (y <= 1)).all():
            raise UserError("The accuracy curve needs five points with losses above 0 and accuracies between 0 and 1.")
        found = fit_second_step(self.form, x[None], y[None], np.array([chance]), None, anchor, starts)
        values = acc.value_and_gradient(self.form, found.parameters_BP, x[None])[0][0]
        names = dict(zip(acc.NAMES[self.form], map(float, found.parameters_BP[0]), strict=True))
        return AccuracyLaw(
            self.form, names, float(np.abs(values / np.maximum(y, 1e-9) - 1).mean()), bool(found.converged_B[0])
        )

    def predict(self, loss: ArrayLike) -> Floats:
        """The accuracy at some losses, within 0 and 1."""
        if self.parameters is None:
            raise UserError("The curve has not been fitted.")
        value = acc.value_and_gradient(
            self.form, np.array([list(self.parameters.values())]), np.atleast_1d(np.asarray(loss, dtype=float))[None]
        )[0][0]
        return np.clip(value, 0.0, 1.0)


def _logs(n: ArrayLike, d: ArrayLike, flops: ArrayLike | None) -> Floats:
    size, tokens = np.atleast_1d(np.asarray(n, dtype=float)), np.atleast_1d(np.asarray(d, dtype=float))
    compute = 6 * size * tokens if flops is None else np.atleast_1d(np.asarray(flops, dtype=float))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(np.stack([size, tokens, compute]))
