"""Instances as the public harness runs them: with the name of an image and an evaluation script."""

from __future__ import annotations

from dataclasses import replace

from lmlab.methods.swebench.harness.scripts import eval_script
from lmlab.methods.swebench.harness.testing import command_of, files_of, in_published_image
from lmlab.methods.swebench.harness.workspaces.workspace import Workspaces
from lmlab.methods.swebench.instances.instance import Instance
from lmlab.methods.swebench.instances.task_repository import image_name


def with_tree(instance: Instance, workspaces: Workspaces) -> Instance:
    """An instance that names its tree where it named a commit, since who gets it has no repository.

    Raises:
        UserError: the tree is not at hand.
    """
    if in_published_image(instance) or instance.extra.get("base_tree"):
        return instance
    return replace(instance, extra={**instance.extra, "base_tree": workspaces.tree_of(instance)})


def with_script(instance: Instance) -> Instance:
    """An instance with image and evaluation script; one that has them stays as it is.

    Raises:
        UserError: its test patch has the line that ends it in the script.
    """
    if instance.eval_script:
        return instance
    text = eval_script(instance.base_commit, instance.test_patch, files_of(instance), command_of(instance))
    return replace(instance, image=instance.image or image_name(instance.instance_id), eval_script=text)
