"""Fixtures that several test files share."""

import shutil

import pytest
from project import Project, make_project


@pytest.fixture(scope="session")
def pristine(tmp_path_factory):
    """A committed throw-away repository in which nothing has run: for copies only."""
    return make_project(tmp_path_factory.mktemp("pristine"))


@pytest.fixture
def project(pristine, tmp_path):
    """A throw-away repository of this test's own, with the TensorFlow backend; nothing has run in it."""
    shutil.copytree(pristine.root, tmp_path / "project")
    return Project(tmp_path / "project")
