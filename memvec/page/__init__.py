"""A finished run or sweep as one page: `run` and `sweep` say what is shown, `render` makes it HTML."""
