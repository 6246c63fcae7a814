"""Other people's recipes, written anew to be measured beside ours. Never imported by the library."""
