"""What filter, scorer, rewriter and native_alignment share: stages, tools, toy corpora."""
