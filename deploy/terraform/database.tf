# Postgres, reached by the transformer alone, with a checked certificate and a token of IAM instead of a password.

locals {
  database_port = 5432
  database_name = "posts"

  # Migrates and owns the tables. RDS makes its password and keeps it in Secrets Manager, so no state file holds it.
  database_admin = "posts_admin"
}

resource "aws_db_subnet_group" "main" {
  name       = var.name
  subnet_ids = aws_subnet.private[*].id
}

resource "aws_db_parameter_group" "main" {
  name_prefix = "${var.name}-"
  family      = "postgres${var.database_version}"

  # On by default from 15; written down, because the token would otherwise travel in the clear.
  parameter {
    name  = "rds.force_ssl"
    value = "1"
  }

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_db_instance" "main" {
  identifier     = var.name
  engine         = "postgres"
  engine_version = var.database_version
  instance_class = var.database_class

  allocated_storage     = var.database_storage_gib
  max_allocated_storage = 5 * var.database_storage_gib
  storage_type          = "gp3"
  storage_encrypted     = true

  db_name                             = local.database_name
  port                                = local.database_port
  username                            = local.database_admin
  manage_master_user_password         = true
  iam_database_authentication_enabled = true

  parameter_group_name   = aws_db_parameter_group.main.name
  db_subnet_group_name   = aws_db_subnet_group.main.name
  vpc_security_group_ids = [aws_security_group.database.id]
  publicly_accessible    = false
  multi_az               = var.database_multi_az

  backup_retention_period   = var.database_backup_days
  copy_tags_to_snapshot     = true
  delete_automated_backups  = false
  deletion_protection       = var.deletion_protection
  skip_final_snapshot       = !var.deletion_protection
  final_snapshot_identifier = "${var.name}-final"

  auto_minor_version_upgrade = true
}
