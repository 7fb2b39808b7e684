"""Instances as the public harness runs them: with the name of an image and an evaluation script."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lmlab.errors import UserError
from lmlab.methods.swebench.harness.scripts import eval_script
from lmlab.methods.swebench.harness.testing import command_of, files_of, in_published_image
from lmlab.methods.swebench.harness.workspaces.trees import TreeStore
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


def bring_trees(
    instances: Sequence[Instance], beside: TreeStore, workspaces: Workspaces
) -> tuple[list[Instance], Counter[str]]:
    """Instances with their trees put into the store of the workspaces.

    Arguments:
        beside: where trees stand that instances name already.
        workspaces: whose repositories have the commits of others.

    Returns:
        The instances, and how many have their tree from where: `beside`, `repository`, `image` (it stays there, with
        all that was built in it), or `missing`.
    """
    found, counts = [], Counter[str]()
    for instance in instances:
        named = instance.extra.get("base_tree")
        try:
            if named:
                where = "beside"
                workspaces.trees.add_from(beside, named)
            elif in_published_image(instance):
                where = "image"
            else:
                where = "repository"
                instance = with_tree(instance, workspaces)
        except UserError:
            where = "missing"
        counts[where] += 1
        found.append(instance)
    return found, counts


def copy_trees(instances: Sequence[Instance], trees: TreeStore, into: Path) -> None:
    """Put the trees of instances that bring theirs along into another folder; the same one is left as it is.

    Raises:
        UserError: one is not at hand, or is another tree than its instance names.
    """
    if into.resolve() != trees.folder.resolve():
        for digest in sorted({each.extra["base_tree"] for each in instances if each.extra.get("base_tree")}):
            TreeStore(into).add_from(trees, digest)


def with_script(instance: Instance) -> Instance:
    """An instance with image and evaluation script; one that has them stays as it is.

    Raises:
        UserError: its test patch has the line that ends it in the script.
    """
    if instance.eval_script:
        return instance
    text = eval_script(instance.base_commit, instance.test_patch, files_of(instance), command_of(instance))
    return replace(instance, image=instance.image or image_name(instance.instance_id), eval_script=text)
