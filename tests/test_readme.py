"""The README's table of settings is what the program has."""

from pathlib import Path

from rollcall.settings import ENV_PREFIX, Settings

README = Path(__file__).parent.parent / "README.md"


def test_the_readme_lists_every_setting_with_its_description() -> None:
    text = README.read_text()

    for name, field in Settings.model_fields.items():
        assert f"| `{ENV_PREFIX}{name.upper()}` |" in text
        assert f"| {field.description} |" in text
