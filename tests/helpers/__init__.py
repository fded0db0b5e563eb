"""What several tests share: variables, files, references and the smallest run."""
