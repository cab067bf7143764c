// What the first tab holds before anyone has typed.
export const SAMPLE = `# Sign in above, then press Ctrl-Enter.
# Ctrl-Space suggests fields; the book on the
# left explains them.

query Overview {
  # Who is asking; null before signing in.
  viewer {
    user {
      email
    }
    role
    permissions
  }
  # Needs the permission MANAGE_CLAUDE_ACCOUNTS.
  claudeAccounts(first: 20) {
    nodes {
      id
      accountName
      status
      tier
      currentUsage
      usageLimit
    }
    totalCount
  }
}
`;
