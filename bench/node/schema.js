// The part of Claviger's schema that the measured query needs.
export const typeDefs = `
  type Query { clients(first: Int): ClientConnection! }
  type ClientConnection { nodes: [Client!]! }
  type Client { id: ID! name: String! company: String status: ClientStatus! owner: User tasks(first: Int): TaskConnection! }
  type User { id: ID! fullName: String! }
  type TaskConnection { nodes: [Task!]! }
  type Task { id: ID! title: String! status: TaskStatus! }
  enum ClientStatus { LEAD ACTIVE PAUSED ARCHIVED }
  enum TaskStatus { TODO IN_PROGRESS BLOCKED DONE CANCELLED }
`
