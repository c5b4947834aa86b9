"""The live side: algorithms run on newly closed bars, supervised, journalled, restartable."""
