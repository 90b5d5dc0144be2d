"""Present what was measured: tables on the terminal, plots for papers, one page, and pictures of answers."""
