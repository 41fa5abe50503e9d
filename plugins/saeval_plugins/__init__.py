"""The built-in plugins. Like third-party plugins, they import only what `saeval` exports."""
