"""The one error tree; each class owns the exit code the command line returns for it."""

from __future__ import annotations


class FimaqError(Exception):
    """Base of every error a user can cause or fix.

    The message says what was got, what was wanted and what to do next; the command line prints it
    without a traceback and exits with ``exit_code``.
    """

    exit_code = 1


class GateFailed(FimaqError):
    """The accuracy gate failed."""

    exit_code = 1


class UsageError(FimaqError):
    """An option, recipe field or combination of them that cannot be meant."""

    exit_code = 2


class GateInconclusive(FimaqError):
    """The accuracy gate cannot decide with the images at hand."""

    exit_code = 3


class InputError(FimaqError):
    """An input file, folder or model that is missing, corrupt, of the wrong kind or incompatible."""

    exit_code = 4


class UnsupportedModelError(InputError):
    """A model this tool would have to leave partly float; it is refused instead."""


class EnvironmentProblem(FimaqError):
    """The machine lacks a device, execution provider or package that was asked for."""

    exit_code = 5
