"""What is submitted: checked, analysed as a graph, and refused or taken."""
