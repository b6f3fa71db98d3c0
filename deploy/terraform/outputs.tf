# What the next step needs.

output "importer_environment" {
  description = "The importers' settings, by stream."
  value       = local.environment.importer
}

output "transformer_environment" {
  description = "The transformers' settings, by stream. There is no password among them."
  value       = local.environment.transformer
}

output "package_url" {
  description = "Where the .deb is to be copied to."
  value       = "s3://${aws_s3_bucket.archive.bucket}/${var.package_key}"
}

output "instance_ids" {
  description = "The hosts, for a session with SSM."
  value       = { for daemon, host in aws_instance.host : daemon => host.id }
}

output "role_arns" {
  description = "The hosts' roles."
  value       = { for daemon, role in aws_iam_role.host : daemon => role.arn }
}

output "database_role" {
  description = "The role to be made by `transformer migrate --grant-to`."
  value       = var.database_role
}

output "database_admin_url" {
  description = "The database's address for migrations, without the password."
  value       = replace(local.database_url, "//${var.database_role}@", "//${local.database_admin}@")
}

output "database_admin_secret_arn" {
  description = "Where RDS keeps the password of the database's administrator. The hosts cannot read it."
  value       = aws_db_instance.main.master_user_secret[0].secret_arn
}

output "alarm_topic_arn" {
  description = "Where the alarms are told, for more subscriptions."
  value       = aws_sns_topic.alarms.arn
}
