"""What every layer uses: text, errors, files, paths, seeding, secrets, progress."""
