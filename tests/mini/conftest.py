"""What tests of the drawn world ask of the machine."""

import pytest

from liveavatar.errors import MissingFilesError
from liveavatar.mini.world.voices import espeak_command


@pytest.fixture(scope="session")
def speech() -> None:
    """An espeak-ng to speak with; `make setup` installs one. Tests without it are skipped."""
    try:
        espeak_command()
    except MissingFilesError as error:
        pytest.skip(str(error))
