"""The built-in plugins. They import only what `saeval` exports, as third parties do."""
